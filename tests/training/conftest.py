"""Trainings that are killed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from bayeslora_cli.training.step import TrainStep


class Killed(BaseException):
    """Nothing in the package catches it."""


@pytest.fixture
def killed_at(monkeypatch):
    """Trainings are killed before a step."""

    @contextmanager
    def context(step):
        original = TrainStep.__call__

        def killed(self, at, micro_batches):
            if at == step:
                raise Killed
            original(self, at, micro_batches)

        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "__call__", killed)
            with pytest.raises(Killed):
                yield

    return context
