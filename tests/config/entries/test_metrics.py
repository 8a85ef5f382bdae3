"""Values outside a metric's range are a damaged result."""

import pytest

from bayeslora_cli.config.catalogue import METRICS, implementation
from bayeslora_cli.config.entries.metrics import metric_name, outside, smaller_is_better


@pytest.mark.parametrize("name", METRICS)
def test_every_entry_is_sound(name):
    entry = METRICS[name]
    low, high = entry.range
    assert low < high
    assert entry.implementation is None or callable(implementation(entry.implementation))
    assert metric_name(name.replace("_", "-").upper()) == name
    record = {"metrics": {"validation": {name: low}}, "value": high}
    assert outside(record, name) is None


def test_the_direction_belongs_to_the_metric():
    found = {name for name in METRICS if smaller_is_better(name)}
    assert found == {"nll", "ece", "brier", "perplexity", "mae", "rmse"}
    assert not smaller_is_better("my_own")
    assert not smaller_is_better(None)
    assert metric_name("MCC") == "matthews"


def test_values_outside_the_range_are_told():
    record = {"metrics": {"validation": {"weighted_f1": 1.5}}, "value": 0.5}
    assert "weighted_f1 is 1.5" in outside(record, "accuracy")
    assert outside({"metrics": {"validation": {"mine": 7.0}}, "value": 7.0}, "mine") is None
