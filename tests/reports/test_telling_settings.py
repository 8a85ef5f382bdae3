"""Which settings tell runs on the same data apart."""

from __future__ import annotations

from bayeslora_cli.reports.telling_settings import telling

NAMES = ("lr", "ess")


def test_a_rate_that_differs_with_the_task_parts_no_method():
    first = [{"lr": 1.0, "ess": 10}, {"lr": 500.0, "ess": 20}]
    other = [{"lr": 2.0, "ess": 10}, {"lr": 500.0, "ess": 20}]
    assert telling(NAMES, [first]) == NAMES
    assert telling(NAMES, [first, other]) == ("ess",)
    assert telling(NAMES, [first * 2, other]) == ("ess",)  # several seeds


def test_what_tells_runs_on_the_same_data_apart_stays():
    grid = [{"lr": lr, "ess": ess} for lr in (1.0, 2.0) for ess in (10, 20)]
    assert telling(NAMES, [grid, [{"lr": 3.0, "ess": 10}]]) == NAMES
    assert telling(NAMES, [[{"lr": 1.0}, {"lr": 2.0}], [{"lr": 3.0}]]) == ("lr",)
    assert telling(NAMES, [[{"lr": 1.0}], [{"lr": 3.0}]]) == ()
