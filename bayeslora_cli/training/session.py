"""What a training works with: a rig, the run that it is for, and the state of it all."""

from __future__ import annotations

from bayeslora_cli.data.batching import TrainOrder, steps_per_epoch
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.runs.checkpoint import Stateful
from bayeslora_cli.training.assembly import rig_for
from bayeslora_cli.training.preparation import Prepared
from bayeslora_cli.training.state import BestSoFar, Generators, Inputs, Loop


class Session:
    """What a training works with, ready for its first step."""

    def __init__(self, prepared: Prepared, processes: Processes = SINGLE) -> None:
        """Loads, tokenises and moves to the device; writes nothing.

        Raises:
            UserError: data, model or device that the user can mend.
        """
        config = prepared.config
        assert config.schedule_steps is not None
        self.config, self.task, self.run = config, prepared.task, prepared.run
        self.processes = processes
        self.total = config.schedule_steps
        self.rig = rig = rig_for(prepared, processes)
        self.device, self.network, self.step = rig.device, rig.network, rig.step
        self.optimizer, self.allocator = rig.optimizer, rig.allocator
        self.splits, self.feed = rig.data.splits, rig.data.feed
        self.training_rows = rig.data.training_rows
        self.order = TrainOrder(
            self.training_rows, config.batch_size, config.seed,
            group_by=self.feed.lengths if config.group_by_length else None,
        )  # fmt: skip
        self.steps_per_epoch = steps_per_epoch(self.training_rows, config.batch_size)
        self.loop = Loop()
        self.best = BestSoFar(self.network.bank, posterior=self.optimizer.posterior)
        self.generators = Generators(self.device, rig.noise, processes)
        self.parts: dict[str, Stateful] = {
            "inputs": Inputs(rig.checksums),
            **rig.parts,
            "generators": self.generators,
            "loop": self.loop,
            "best": self.best,
        }
