"""The same accuracies as lm-eval 0.4.13, row by row in fp32, with SmolLM2 on real questions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bayeslora_cli.tasks.sources.choice_tasks.choice_task import TASKS
from tests.support.choice_rows import lm_eval_rows, our_rows
from tests.support.smollm import needs_smollm, save_smollm

DATA = Path(os.environ.get("BAYESLORA_LM", Path(__file__).parents[3] / "shared" / "lm"))
ROWS = int(os.environ.get("BAYESLORA_LM_EVAL_ROWS", "500"))


@pytest.mark.slow
@pytest.mark.realmodel
@needs_smollm
@pytest.mark.realdata
@pytest.mark.filterwarnings("default")  # lm-eval's, and those of what it imports
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("name", "shots"), [("arc-easy", 0), ("mmlu", 0), ("mmlu", 5)])
def test_every_row_is_judged_as_lm_eval_judges_it(name, shots, tmp_path):
    pytest.importorskip("lm_eval")
    if not DATA.is_dir():
        pytest.skip(f"{DATA}: no such directory")
    model, task = save_smollm(tmp_path / "model"), TASKS[name]
    folder = task.layout.find_folder(DATA, task.folder)
    ours = our_rows(model, task, DATA, shots=shots, rows=ROWS)
    theirs = lm_eval_rows(
        model,
        task.layout.read_split(folder, "test"),
        task.layout.read_split(folder, task.shots_split),
        tmp_path,
        form=task.form,
        shots=shots,
        rows=ROWS,
    )
    assert len(ours) == len(theirs) == ROWS
    for own, other in zip(ours, theirs, strict=True):
        assert (own.place, own.label) == (other.place, other.label)
        assert own.likelihoods == pytest.approx(other.likelihoods, abs=1e-3)
        assert (own.right, own.right_by_bytes) == (other.right, other.right_by_bytes)
