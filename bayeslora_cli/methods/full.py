"""Full fine-tuning: the backbone's own weights are trained."""

from __future__ import annotations

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.methods.method import LayerMaker, Method


class FullFineTuning(Method):
    """Trains all weights, without adapters."""

    def layer_maker(self, config: RunConfig) -> LayerMaker | None:
        return None


FULL = FullFineTuning()
