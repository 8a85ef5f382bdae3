"""The options of `bayeslora train`, as its fields make them."""

from __future__ import annotations

import pytest
import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.config.options import LENGTH, PANELS, option
from bayeslora_cli.config.run_config import OPTIONS

# Every flag by the panel of the help. A new one is a decision: scripts go on using it for years.
FLAGS = {
    "What to train": "--task --preset --list-presets --data --choices --model --trust-remote-code",
    "Your own data": "--train-file --eval-file --text-columns --label-column --task-type "
    "--loss-on --validation --class-weights --temperature --pooling",
    "Method": "--method --optimizer --criterion --from",
    "Ranks": "--target-rank --init-rank --target-modules --alpha --orth-reg --t-init --t-final "
    "--delta-t --from-ranks",
    "Ranks and bit widths (B-LoRA)": "--blora-mode --lambda-quant --lambda-rank --bit-ladder "
    "--quantize-base --reg --gate-lr --range-lr",
    "How long": "--epochs --max-steps --batch-size --group-by-length --grad-accum --max-length "
    "--dropout --eval-every --select --patience",
    "Learning rates": "--lr --lr-schedule --boost-lr --boost-until-step --warmup-steps "
    "--warmup-ratio --weight-decay --weight-decay-of --max-grad-norm",
    "Posterior (IVON)": "--ess --ess-per-example --train-samples --hess-init --ivon-beta1 "
    "--ivon-beta2 --clip-radius --prior",
    "Machine and output": "--seed --precision --base-precision --device --deterministic --eager "
    "--compile --packing --gradient-checkpointing --shard --eval-batch-size --checkpoint-every "
    "--output --overwrite",
    "Several runs": "--seeds --jobs --print-commands",
    "What is printed": "--dry-run --gpu-memory --json --quiet --verbose --log-every --log-to",
}
SWITCHES = {
    "--list-presets", "--trust-remote-code", "--quantize-base", "--group-by-length",
    "--deterministic", "--eager", "--shard", "--overwrite", "--print-commands", "--dry-run",
    "--json", "--quiet", "--verbose",
}  # fmt: skip


def parameters():
    """The parameters of train, as Typer reads them."""
    return typer.main.get_command(app).commands["train"].params


def test_the_flags_are_these():
    found = {}
    for parameter in parameters():
        assert len(parameter.opts) == 1
        assert parameter.secondary_opts == [], "no --no-..."
        found.setdefault(parameter.rich_help_panel, set()).update(parameter.opts)
    assert found == {panel: set(flags.split()) for panel, flags in FLAGS.items()}
    assert list(found) == list(FLAGS) == list(PANELS)
    assert {p.opts[0] for p in parameters() if p.is_flag} == SWITCHES


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--gradient-checkpointing"], "blocks"),
        (["--gradient-checkpointing", "--eager"], "blocks"),
        (["--gradient-checkpointing", "selective", "--eager"], "selective"),
        (["--gradient-checkpointing=off"], "off"),
        ([], None),
    ],
)
def test_a_flag_that_may_stand_without_a_value(words, wanted):
    train = typer.main.get_command(app).commands["train"]
    given = train.make_context("train", ["--task", "rte", *words]).params
    assert given["gradient_checkpointing"] == wanted
    assert given["task"] == "rte"


def test_types_of_the_values():
    """A list of a sweep is text, and so is a comma list; all else has its field's type."""
    given = typer.main.get_command(app).commands["train"].make_context(
        "train",
        ["--task", "rte,cola", "--lr", "1,2", "--target-rank", "2-4", "--text-columns", "a,b",
         "--seed", "7", "--epochs", "2", "--eager"],
    ).params  # fmt: skip
    expected = {
        "task": "rte,cola", "lr": "1,2", "target_rank": "2-4", "text_columns": "a,b", "seed": 7,
        "epochs": 2.0, "eager": True, "alpha": None, "compile": None,
    }  # fmt: skip
    for name, value in expected.items():
        assert given[name] == value
        assert type(given[name]) is type(value)


def test_every_value_has_its_help():
    for parameter in parameters():
        assert parameter.help
        assert parameter.help.endswith(".")
        assert "{" not in parameter.help
        assert "None" not in parameter.help


def test_what_most_users_need():
    """The rest of the help is for those who look for it."""
    shown = {name for name, o in OPTIONS.items() if not o.deep}
    assert shown == {
        "task", "data", "model", "train_file", "eval_file", "method", "optimizer", "criterion",
        "target_rank", "epochs", "batch_size", "lr", "seed", "precision", "device", "output",
        "log_to",
    }  # fmt: skip


def test_defaults_are_told_once():
    """The help makes them of the field."""
    shown = {name: option.text() for name, option in OPTIONS.items()}
    assert shown["alpha"].endswith("(default: 32).")
    assert shown["ivon_beta2"].endswith("(default: 0.99999).")
    assert shown["blora_mode"].endswith("(default: both).")
    assert shown["optimizer"] == "ivon or adamw (default: ivon for adalora, else adamw)."
    assert shown["criterion"].endswith("(default: snr; sensitivity with adamw).")
    assert shown["epochs"].endswith("(default: 3).")
    assert OPTIONS["epochs"].text("1.5 to 50").endswith("(default: 3; presets: 1.5 to 50).")
    assert OPTIONS["batch_size"].text("32").endswith("(default: 32).")
    assert option(4, LENGTH, "x").metadata["option"].text() == "x (default: 4)."
