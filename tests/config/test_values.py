"""Values of options as typed; durations and ranks as printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.values import Interval, duration, parse_interval, ranks_text
from bayeslora_cli.errors import ConfigError


@given(number=st.integers(1, 10**9 - 1), unit=st.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_steps_and_times(number, unit):
    assert parse_interval(str(number)) == Interval(steps=number)
    assert parse_interval(f"{number}{unit[0]}") == Interval(seconds=number * unit[1])


def test_auto():
    assert parse_interval("auto") == Interval()


@pytest.mark.parametrize(
    "text", ["", "0", "0m", "-5", "5 m", "1.5h", "10d", "m", "often", "1e3", "5M", "٣", "9" * 50]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        RunConfig(checkpoint_every=text)
    assert f"--checkpoint-every {text}: give auto, a number of steps" in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (3599.7, "1h00m"),
        (11_100, "3h05m"), (360_000, "100h00m"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("ranks", "text"), [([2, 2], "rank 2"), ([3, 1, 2], "ranks 1 to 3"), ([0], "rank 0")]
)
def test_ranks_in_words(ranks, text):
    assert ranks_text(ranks) == text
