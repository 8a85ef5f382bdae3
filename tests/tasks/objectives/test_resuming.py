"""Each kind of task that an encoder learns from the user's rows: resumed, and exported to ONNX."""

from __future__ import annotations

import pytest

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.training.loop import train
from tests.support.faults import contents, differences
from tests.support.task_files import complaints, paraphrases, questions, tagged, write_lines

ROWS = {
    "multi-label": (complaints, ("text", "labels")),
    "token-classification": (tagged, ("tokens", "ner_tags")),
    "multiple-choice": (questions, ("question", "choices", "answer")),
    "embedding": (paraphrases, ("anchor", "positive", "negative")),
}
METHODS = {
    "adalora-ivon": {"optimizer": "ivon", "criterion": "snr"},
    "blora-adamw": {"method": "blora", "optimizer": "adamw"},
}


def written(folder, kind):
    """Write a kind's rows; return the files by option."""
    made, names = ROWS[kind]
    return {
        f"{name}_file": write_lines(
            folder / f"{name}.jsonl",
            [dict(zip(names, row, strict=True)) for row in made(rows, seed)],
        )
        for seed, (name, rows) in enumerate((("train", 48), ("eval", 16)))
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ROWS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    backbone, killed_at, tmp_path, kind, method
):
    files = written(tmp_path, kind)

    def run(output):
        return train(resolve({
            "model": backbone("bert", 0.1), "output": str(tmp_path / output), "device": "cpu",
            "task_type": kind, "batch_size": 8, "grad_accum": 2, "max_steps": 6, "eval_every": 3,
            "checkpoint_every": "2", **files, **METHODS[method],
        }))  # fmt: skip

    whole = run("whole")
    with killed_at(5):
        run("killed")
    assert differences(run("killed").path, contents(whole.path)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of one core, which may be a shared one
@pytest.mark.parametrize("kind", ROWS)
def test_an_onnx_export_has_the_runs_logits(backbone, tmp_path, kind):
    pytest.importorskip("onnxscript")
    run = train(resolve({
        "model": backbone("bert"), "output": str(tmp_path / "runs"), "device": "cpu",
        "task_type": kind, "batch_size": 8, "max_steps": 2, **written(tmp_path, kind),
    }))  # fmt: skip
    _, manifest = export_run(run.path, ExportOptions(format="onnx", device="cpu"))
    assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
