"""Names from other trainers: what each is called here."""

from __future__ import annotations

import pytest
import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.config.files.foreign_names import FOREIGN, Ours, hint
from bayeslora_cli.config.files.presets import read_preset
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.errors import ConfigError

ISSUE = {
    "learning_rate", "num_train_epochs", "per_device_train_batch_size", "lora_r", "lora_alpha",
    "gradient_accumulation_steps", "output_dir", "report_to", "bf16", "model_name_or_path",
    "config",
}  # fmt: skip


def test_the_table_names_options_that_exist():
    train = typer.main.get_command(app).commands["train"]
    known = {parameter.name for parameter in train.params}
    for name, found in FOREIGN.items():
        assert name == name.lower().replace("-", "_")
        assert name not in known, "it is an option here"
        if isinstance(found, Ours):
            assert found.name in known, name
            if found.value and OPTIONS[found.name].choices:
                assert found.value in OPTIONS[found.name].choices
    assert FOREIGN.keys() >= ISSUE


def test_a_flag_without_a_value_is_answered_with_one():
    """`--bf16` alone would otherwise become `--precision` without a value."""
    for name in ("bf16", "fp16", "tf32", "no_cuda", "torch_compile"):
        assert FOREIGN[name].value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("learning_rate = 1", "learning_rate: here it is lr"),
        ("num_train_epochs = 1", "num_train_epochs: here it is epochs"),
        ("bf16 = true", 'bf16: here it is precision = "bf16" (adapters stay fp32)'),
        ("do_train = true", "do_train: leave it out: train does both"),
        ("[adalora]\nlora_alpha = 8", "lora_alpha: here it is alpha"),
        ('"batch-size" = 8', "batch-size: here it is batch_size"),
        ("config = 1", "config is no option"),
    ],
)
def test_keys_of_presets_get_the_same_line(tmp_path, text, problem):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_preset(path)
    assert str(caught.value) == f"preset {path}: {problem}"


def test_what_is_written_for_a_value_can_be_read():
    def spelled(name, value):
        if value:
            RunConfig(task="rte", **{name: (value,) if OPTIONS[name].is_list else value})
        return name

    for name in FOREIGN:
        hint(name, spelled, OPTIONS.__contains__)
