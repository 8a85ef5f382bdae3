"""The ranges are those of the metrics that there are."""

from bayeslora_cli.tasks.metric_ranges import RANGES
from bayeslora_cli.tasks.metrics import METRICS


def test_every_metric_has_a_range():
    assert METRICS.keys() <= RANGES.keys()
