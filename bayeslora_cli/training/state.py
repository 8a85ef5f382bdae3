"""The parts of a run's state that belong to the loop and that a checkpoint keeps."""

from __future__ import annotations

import logging
import operator
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.bayes.gaussian import FactorisedGaussian
from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.entries.metrics import outside
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.execution.processes import SINGLE, Processes, mixed
from bayeslora_cli.models.adapters.bank import AdapterBank

logger = logging.getLogger("bayeslora")
STEPS_BACK = 1000
"""Steps that `Generators.rewind` can go back: 10 kB per step on a CPU, almost none on a GPU."""


@dataclass(kw_only=True, slots=True)
class LoopState:
    """How far the loop has come. The order of the data follows from the seed and the step."""

    step: int = 0
    """Steps done."""
    evaluated: int = 0
    """Number of steps done at the last evaluation."""
    waited: int = 0
    """Evaluations at the final ranks since the best of them."""
    train_seconds: float = 0.0
    """Seconds spent in steps."""
    evaluation_seconds: float = 0.0
    """Seconds spent in evaluations."""
    checkpoint_seconds: float = 0.0
    """Seconds spent on checkpoints, this one not counted."""
    interval_seconds: float = 0.0
    """Seconds spent in steps since the last line of metrics.jsonl."""
    interval_tokens: int = 0
    """Tokens seen since the last line of metrics.jsonl."""
    allocation: dict[str, Any] = field(default_factory=dict)
    """The last line of ranks.jsonl, without its step and budget."""

    def tensors(self) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}

    def scalars(self) -> dict[str, Any]:
        """Return all fields."""
        return asdict(self)

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore what `scalars()` returned in an earlier process.

        Raises:
            AttributeError, KeyError: fields are unknown, or the step is missing.
        """
        self.step, self.evaluated = scalars["step"], scalars["evaluated"]
        for name, value in scalars.items():
            setattr(self, name, value)


class Generators:
    """The random generators: torch's on the CPU and the device (dropout), and that of the noise.

    Each process has its own; the checkpoint, which the first process writes, holds all of them.
    """

    def __init__(
        self, device: torch.device, noise: torch.Generator, processes: Processes = SINGLE
    ) -> None:
        self.processes = processes
        self.others: list[dict[str, str]] = []
        """The other processes' states, by rank, as of the last `gather` or checkpoint."""
        self.generators = {"cpu": torch.default_generator, "noise": noise}
        if device.type == "cuda":
            index = device.index or 0
            self.generators["cuda"] = torch.cuda.default_generators[index]
        self._before: deque[tuple[int, dict[str, Tensor]]] = deque(maxlen=STEPS_BACK)

    def note(self, step: int) -> None:
        """Remember the states before a step; this does not read from the device."""
        self._before.append((step, {n: g.get_state() for n, g in self.generators.items()}))

    def rewind(self, step: int) -> bool:
        """Go back to the states before a step; return whether they were remembered."""
        for noted, states in self._before:
            if noted == step:
                for name, state in states.items():
                    self.generators[name].set_state(state)
                return True
        return False

    def tensors(self) -> dict[str, Tensor]:
        """Return no tensors: a generator's state cannot be restored in place."""
        return {}

    def gather(self) -> None:
        """Fetch the other processes' states, which the first process's `scalars` returns."""
        self.others = self.processes.gather(self._own())[1:]

    def _own(self) -> dict[str, str]:
        return {n: g.get_state().numpy().tobytes().hex() for n, g in self.generators.items()}

    def scalars(self) -> dict[str, Any]:
        """Return the states in hexadecimal, also those of other processes if there are any."""
        return {**self._own(), **({"others": self.others} if self.others else {})}

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore `scalars()` of an earlier process on the same kind of device.

        A process for which the checkpoint has no state starts from a seed derived from the state.
        """
        # `broadcast_state` gives them to the other processes
        self.others = scalars.get("others", [])
        found = [{n: s for n, s in scalars.items() if n != "others"}, *self.others]
        rank, world = self.processes.rank, self.processes.world
        if len(found) != world and self.processes.first:
            logger.info(
                "the checkpoint is of %d process%s, now %d: the same batches, other random draws",
                len(found), "es" if len(found) > 1 else "", world,
            )  # fmt: skip
        if rank < len(found):
            self._take(found[rank])
            return
        for name, generator in self.generators.items():
            generator.manual_seed(mixed(found[0][name], rank))

    def _take(self, scalars: dict[str, str]) -> None:
        if scalars.keys() != self.generators.keys():
            kind = "cuda" if "cuda" in scalars else "cpu"
            raise RunDirError(
                f"--device: the checkpoint is of a run on {kind}, whose random streams only that "
                "kind of device continues; use it, or --overwrite"
            )
        for name, generator in self.generators.items():
            state = bytearray(bytes.fromhex(scalars[name]))
            generator.set_state(torch.frombuffer(state, dtype=torch.uint8))


class InputChecksums:
    """Checksums of a run's inputs: a checkpoint made from other inputs is refused."""

    def __init__(self, checksums: Mapping[str, str]) -> None:
        """`checksums`: each by the name of what it covers, as messages print it."""
        self.checksums = dict(checksums)

    def tensors(self) -> dict[str, Tensor]:
        """Return no tensors."""
        return {}

    def scalars(self) -> dict[str, str]:
        """Return the checksums."""
        return self.checksums

    def load_scalars(self, scalars: dict[str, str]) -> None:
        """Compare with the checksums of an earlier process.

        Raises:
            RunDirError: an input has changed since.
        """
        changed = [
            name for name, value in self.checksums.items() if not _same(scalars.get(name), value)
        ]
        if changed:
            raise RunDirError(
                f"{' and '.join(changed)} changed since the run was begun: going on would give "
                "neither run. Put the old ones back, or use --overwrite or another --output"
            )


def _same(then: str | None, now: str) -> bool:
    """Compare checksums, of which an earlier version has kept the first words only."""
    return then is not None and all(
        before == after for before, after in zip(then.split(), now.split(), strict=False)
    )


class BestSoFar:
    """The best evaluations, and the state of the best one at the final budget, on the CPU."""

    def __init__(self, bank: AdapterBank, *, posterior: bool) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        """By best, best_at_budget and last: the evaluation's step, epoch, metrics and value."""
        self._layout = bank.layout
        self.mean = torch.zeros(bank.size)
        self.sigma = torch.zeros(bank.size) if posterior else None
        self.mask = torch.ones(bank.mask.shape)
        self.scores = torch.zeros(bank.mask.shape)

    @property
    def posterior(self) -> Posterior:
        """Posterior of the kept state."""
        return FactorisedGaussian(
            layout=self._layout, mean=self.mean, sigma=self.sigma, mask=self.mask
        )

    def offer(
        self, record: Mapping[str, Any], value: float, *, at_budget: bool, smaller: bool = False
    ) -> bool:
        """Compare an evaluation with the best so far; of two equal ones the earlier stays best.

        Args:
            value: value of the metric that selects the best.
            at_budget: whether the final rank budget was reached.
            smaller: whether the smallest value is the best, not the largest.
        Returns:
            Whether it is the new best at the final budget.
        """
        entry = {**record, "value": value}
        is_better = operator.lt if smaller else operator.gt
        better = [
            name
            for name in (("best", "best_at_budget") if at_budget else ("best",))
            if name not in self.records or is_better(value, self.records[name]["value"])
        ]
        self.records |= dict.fromkeys(better, entry) | {"last": entry}
        return "best_at_budget" in better

    def keep(self, mean: Tensor, sigma: Tensor | None, mask: Tensor, scores: Tensor | None) -> None:
        """Copy the present state as that of the best evaluation."""
        self.mean.copy_(mean)
        self.mask.copy_(mask)
        if self.sigma is not None and sigma is not None:
            self.sigma.copy_(sigma)
        if scores is not None:
            self.scores.copy_(scores)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the kept state."""
        found = {"mean": self.mean, "mask": self.mask, "scores": self.scores}
        return found if self.sigma is None else found | {"sigma": self.sigma}

    def scalars(self) -> dict[str, Any]:
        """Return the records."""
        return self.records

    def load_scalars(self, scalars: dict[str, Any]) -> None:
        """Restore what `scalars()` returned in an earlier process.

        Raises:
            ValueError: a record is none of an evaluation.
        """
        for name, record in scalars.items():
            if (wrong := outside(record, None)) is not None or not _is_record(record):
                raise ValueError(f"{name}: {wrong or 'is no record of an evaluation'}")
        self.records = dict(scalars)


def _is_record(value: Mapping[str, Any]) -> bool:
    numbers = [value.get(name) for name in ("step", "epoch", "value")]
    return all(isinstance(n, int | float) and n >= 0 for n in numbers[:2]) and isinstance(
        numbers[2], int | float
    )
