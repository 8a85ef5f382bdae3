"""What a training tells a reporter."""

from __future__ import annotations

from bayeslora_cli.training.run_log import Reporter
from tests.cli.test_progress import run


def test_the_reporter_that_says_nothing(capfd):
    run(Reporter())
    assert capfd.readouterr() == ("", "")
