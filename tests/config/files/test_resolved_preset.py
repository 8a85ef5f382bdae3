"""A preset with all its values leads to the same run as the preset itself."""

from __future__ import annotations

import tomllib

import pytest

from bayeslora_cli.config.files.presets import list_presets
from bayeslora_cli.config.files.resolved_preset import resolved_preset
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.errors import ConfigError

ROWS = ({}, {"criterion": "sensitivity"}, {"method": "lora"}, {"method": "blora"},
        {"method": "full", "optimizer": "ivon"})  # fmt: skip


@pytest.mark.parametrize("name", list_presets())
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_saved_and_used_it_is_the_same_run(name, row, tmp_path):
    files = (
        {"train_file": "a", "eval_file": "b"}
        if name in ("custom", "causal", "multiple-choice")
        else {}
    )
    task = {"task": "rte"} if name in ("learned-posterior", "ivon-lora") else {}
    if name == "ivon-lora" and "criterion" in row:  # the preset's own method has no criteria
        task |= {"method": "adalora"}
    saved = tmp_path / "saved.toml"
    saved.write_text(resolved_preset(name, row | task))
    expected, found = resolve(row | task | files, name), resolve(files, str(saved))
    assert found.config == expected.config
    assert found.changed == expected.changed


def test_each_value_says_where_it_comes_from():
    text = resolved_preset("mrpc", {"criterion": "sensitivity"})
    lines = text.splitlines()
    assert lines[0] == "# preset mrpc, resolved for mrpc adalora ivon sensitivity"
    assert "epochs = 30.0  # preset mrpc" in lines
    assert 'criterion = "sensitivity"  # command line' in lines
    assert "seed = 2021  # default" in lines
    assert "gate_lr = 0.01  # default; no effect with --method adalora" in lines
    named = {line.lstrip("# ").split(" = ")[0].split(":")[0] for line in lines}
    assert named >= OPTIONS.keys() - {"trust_remote_code"}
    assert tomllib.loads(text)["lr"] == 0.5


def test_files_and_tasks_that_a_preset_leaves_open(tmp_path):
    assert "\n# train_file: " in resolved_preset("custom", {})
    with pytest.raises(ConfigError, match="learned-posterior names no task: give --task"):
        resolved_preset("learned-posterior", {})
    mine = tmp_path / "mine.toml"
    mine.write_text('train_file = "hub/name"\ntarget_modules = ["query", "dense"]\n')
    text = resolved_preset(str(mine), {})
    assert f'train_file = "hub/name"  # preset {mine}\n' in text
    assert tomllib.loads(text)["target_modules"] == ["query", "dense"]
