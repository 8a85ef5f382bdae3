"""What is said of a run before it begins."""

from __future__ import annotations

import pytest

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.training.preparation import warn_of_few_steps


@pytest.mark.parametrize(
    ("typed", "rows", "said"),
    [
        ({"eval_every": 10, "max_steps": 40}, 1000, True),
        ({"eval_every": 10, "max_steps": 40}, 320, True),
        ({"eval_every": 10, "max_steps": 41}, 320, False),
        ({"eval_every": 10}, 320, False),
        ({"max_steps": 40}, 1000, False),
    ],
)
def test_an_interval_of_evaluations_that_never_counts(typed, rows, said, caplog):
    """It counts from the second epoch on; a shorter run was evaluated once, without a word."""
    warn_of_few_steps(resolve({"task": "demo", "batch_size": 8, **typed}), rows)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * said
    assert all("--eval-every 10 has no effect" in r.message for r in caplog.records)
