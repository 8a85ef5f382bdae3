"""docs/options.md is what the fields and the commands say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.cli.help.options_page import COMMAND, page

PAGE = Path(__file__).parents[3] / "docs" / "options.md"


def test_the_page_is_current():
    if PAGE.read_text(encoding="utf-8") != page():
        raise AssertionError(f"an option has changed; write the page anew: {COMMAND}")


def test_the_command_that_the_page_names_writes_it():
    words = COMMAND.split(" > ")[0].split()[1:]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert done.stdout == page()


def test_every_option_of_every_command_is_there():
    text = page()
    for name, command in typer.main.get_command(app).commands.items():
        (part,) = [p for p in text.split("\n## ") if p.startswith(f"bayeslora {name}\n")]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}`" in part
    assert "| 32 | 16 to 32 | `adalora`, `lora`, `blora` |" in text
