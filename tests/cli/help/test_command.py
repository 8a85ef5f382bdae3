"""The help's two depths, its examples, and the answers to names from other trainers."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.config.options import PANELS
from bayeslora_cli.config.run_config import OPTIONS

COMMANDS = typer.main.get_command(app).commands
each_command = pytest.mark.parametrize("name", COMMANDS)


@pytest.fixture
def typed(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # a line per option
    return typed


@each_command
def test_no_metavar_is_the_options_own_name(name):
    """typer 0.27 names such an option as its metavar is spelled: --TASK."""
    for parameter in COMMANDS[name].params:
        assert parameter.opts[0] == parameter.opts[0].lower()
        metavar = parameter.metavar or ""
        assert metavar.lower().replace("_", "-") != parameter.opts[0].lstrip("-") or (
            parameter.param_type_name == "argument"
        )


def flags(text):
    """The options that a help lists."""
    return set(re.findall(r"(?m)^│ +(?:\* +)?(--[\w-]+)", text))


@each_command
def test_the_help_has_two_depths(name, typed):
    command = COMMANDS[name]
    every = {flag for p in command.params if p.param_type_name == "option" for flag in p.opts}
    code, short, _ = typed(name, "--help")
    assert code == 0
    code, full, _ = typed(name, "--help-all")
    assert (code, flags(full)) == (0, every | {"--help"})
    assert command.rare <= {parameter.name for parameter in command.params}
    hidden = {flag for p in command.params if p.name in command.rare for flag in p.opts}
    assert flags(short) == flags(full) - hidden
    says = f"bayeslora {name} --help-all shows {len(hidden)} more options.\n"
    assert short.endswith(says) == bool(hidden)
    assert says not in full


def test_train_shows_what_most_runs_need(typed):
    _, short, _ = typed("train", "--help")
    assert flags(short) == {option.flag for option in OPTIONS.values() if not option.deep} | {
        "--preset", "--seeds", "--jobs", "--dry-run", "--json", "--help",
    }  # fmt: skip
    assert "Posterior (IVON)" not in short
    _, full, _ = typed("train", "--help-all")
    assert [found for found in re.findall(r"╭─ ([^─]+) ─", full) if found != "Options"] == [*PANELS]


def test_train_shows_defaults_and_those_of_presets(typed):
    _, full, _ = typed("train", "--help-all")
    lines = dict(re.findall(r"(?m)^│ +(--[\w-]+) +(.*?) *│$", full))
    assert "(default: 3; presets: 1.5 to 50)" in lines["--epochs"]
    assert "(default: linear; presets: boost or linear)" in lines["--lr-schedule"]
    assert "(default: microsoft/deberta-v3-base)" in lines["--model"]


@each_command
def test_examples_can_be_typed(name, typed):
    command = COMMANDS[name]
    assert command.examples
    assert "\n  ".join(["Examples:", *command.examples]) in typed(name, "--help")[1]
    for example in command.examples:
        assert len(example) < 79
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == "bayeslora"
        COMMANDS[words[1]].make_context(words[1], words[2:])


def test_the_help_is_there_at_once():
    """Without torch, numpy or matplotlib."""
    program = (
        "import sys; sys.argv = ['bayeslora', 'train', '--help-all']\n"
        "from bayeslora_cli.cli.app import main\n"
        "try:\n    main()\nfinally:\n"
        "    assert not {'torch', 'numpy', 'matplotlib', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--learning_rate", "1e-3"], "--learning_rate: here it is --lr"),
        (["--learning-rate=1e-3"], "--learning-rate: here it is --lr"),
        (["--num_train_epochs", "3"], "--num_train_epochs: here it is --epochs"),
        (["--output_dir", "x"], "--output_dir: here it is --output"),
        (["--bf16"], "--bf16: here it is --precision bf16 (adapters stay fp32)"),
        (["--report_to", "wandb"], "--report_to: here it is --log-to"),
        (["--model_name_or_path", "x"], "--model_name_or_path: here it is --model"),
        (["--config", "x"], "--config: here it is --preset (a .toml file)"),
        (["--warmup_steps", "3"], "--warmup_steps: here it is --warmup-steps"),
        (["--resume_from_checkpoint", "x"],
         "--resume_from_checkpoint: leave it out: the same command, run again, resumes"),
        (["--do_train", "--lora_alpha", "8"],
         "--do_train: leave it out: train does both\n--lora_alpha: here it is --alpha"),
    ],
)  # fmt: skip
def test_names_from_elsewhere_get_a_line(typed, words, answer):
    code, out, err = typed("train", "--task", "rte", *words)
    assert (code, out, err) == (2, "", f"error: {answer}\n")


def test_what_nobody_knows_is_still_no_option(typed):
    code, _, err = typed("train", "--task", "rte", "--lrr", "1")
    assert code == 2
    assert re.search(r"No such option:? .?--lrr", err)
    code, _, err = typed("train", "--lr")  # an option, but without its value
    assert code == 2
    assert "requires an argument" in err


def test_other_commands_know_their_own_options_only(typed):
    assert typed("eval", "RUN", "--batch_size", "2")[2] == (
        "error: --batch_size: here it is --batch-size\n"
    )
    assert typed("export", "RUN", "--output_dir", "x")[2] == (
        "error: --output_dir: here it is --output\n"
    )
    said = typed("eval", "RUN", "--learning_rate", "2")[2]
    assert re.search(r"No such option:? .?--learning_rate", said)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--seed", "\x1b[2J"),
        ("train", "--\x1b[2J"),
        ("eval", "RUN", "--samples", "1\x1b]0;title\x07"),
        ("\x1b[2J",),
        ("--\x1b[2J", "train"),
        ("presets", "\x1b[2J"),
    ],
)
def test_what_was_typed_is_escaped(typed, words):
    code, out, err = typed(*words)
    assert code == 2
    assert "\x1b[2J" not in out + err
    assert "\x1b]" not in out + err
