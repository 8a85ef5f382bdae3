"""What `import bayeslora_cli` offers: model cards name it, and last longer than folders."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bayeslora_cli
from bayeslora_cli.export.formats import integer_codes


def test_load_quantized_has_a_path_that_stays():
    assert bayeslora_cli.load_quantized is integer_codes.load_quantized


def test_the_path_that_earlier_cards_name():
    from bayeslora_cli.quantized_file import load_quantized

    assert load_quantized is integer_codes.load_quantized


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        _ = bayeslora_cli.load_nothing


def test_the_package_imports_no_torch():
    program = "import bayeslora_cli, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]


def test_every_public_name_is_there():
    for name in bayeslora_cli.__all__:
        assert getattr(bayeslora_cli, name).__doc__, name
    assert set(bayeslora_cli.__all__) <= set(dir(bayeslora_cli))


def test_type_checkers_see_the_same_names():
    source = Path(bayeslora_cli.__file__).read_text(encoding="utf-8")
    seen = set(re.findall(r"import (\w+) as \1$", source, re.MULTILINE))
    assert seen == set(bayeslora_cli.__all__)


@pytest.mark.parametrize("name", ["Run", "Reporter", "criteria", "plan", "results", "train"])
def test_a_verb_is_imported_without_torch(name):
    program = f"import bayeslora_cli as bl, sys; bl.{name}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
