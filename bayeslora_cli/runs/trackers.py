"""Trackers of experiments, told what goes into metrics.jsonl, through their own libraries.

A tracker's failure is never the training's: it is said once, and the tracker hears nothing more.
Projects, servers and offline modes are the libraries' own variables: WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR and the like.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from bayeslora_cli.config.effects import affecting
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.toml_files import to_toml
from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.directory import RunDir

logger = logging.getLogger("bayeslora")

PROJECT = "bayeslora"
"""Where the library's own variable names no other."""


def check_trackers(names: Sequence[str]) -> None:
    """Whether the libraries are there, before anything is computed.

    Raises:
        UserError: one is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--log-to {name}: needs {name}; pip install 'bayeslora[{name}]'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """What a tracker is told at first."""

    run: RunDir
    config: RunConfig
    id: str
    """By which it finds its run again; of its own making after it has given one."""
    resumed: bool
    """Whether it has had this run before."""
    step: int
    """Steps done: what it was told of later ones comes again."""

    @property
    def name(self) -> str:
        """What people read."""
        return "/".join(self.run.path.resolve().parts[-2:])


class Tracker(Protocol):
    """One run in one tracker."""

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, counted from 0."""

    def close(self, *, finished: bool) -> None:
        """The process is done with it; `finished`: the run is, too."""


class Trackers:
    """All trackers of a run: opened by `start`, closed when the context ends."""

    def __init__(self, run: RunDir, config: RunConfig) -> None:
        """Nothing happens before `start`."""
        self.run, self.config = run, config
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda t=tracker: t.close(finished=error is None))  # type: ignore[misc]

    def start(self, step: int) -> None:
        """Open them, or go on in what an earlier process has opened.

        Args:
            step: steps done.
        """
        names = self.config.log_to or ()
        if not names:
            return
        ids = self._known()
        for name in dict.fromkeys(names):
            beginning = Beginning(
                run=self.run,
                config=self.config,
                id=str(ids.get(name) or secrets.token_hex(8)),
                resumed=name in ids,
                step=step,
            )
            self._try(name, lambda n=name, b=beginning: self._opened(n, b))  # type: ignore[misc]
            if name in self._open:
                ids[name] = self._open[name].id
        write_json(self.run.trackers, ids)

    def _known(self) -> dict[str, Any]:
        """The trackers of an earlier process, and how each finds its run again."""
        if not self.run.trackers.is_file():
            return {}
        try:
            return self.run.read_json(self.run.trackers)
        except UserError as error:
            logger.warning("%s; the trackers begin anew", error)
            return {}

    def _opened(self, name: str, beginning: Beginning) -> None:
        self._open[name] = OPENERS[name](beginning)

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self._tell(line["step"], dict(_flat(line)))

    def summary(self, result: Mapping[str, Any]) -> None:
        """What result.json says of the best evaluation at the final budget."""
        metrics = result["best_at_budget"]["metrics"]
        values = {
            f"best_at_budget/{split}/{name}": value
            for split, found in metrics.items()
            for name, value in found.items()
        }
        self._tell(result["steps"] - 1, values)

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, lambda t=tracker: t.log(step, values))  # type: ignore[misc]

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # which is the result's alone
                action()
        except Exception as error:
            self._open.pop(name, None)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                "--log-to %s: %s; it is told nothing more, metrics.jsonl has everything", name, what
            )


def _flat(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name == "metrics":
            for split, found in value.items():
                yield from ((f"{split}/{metric}", number) for metric, number in found.items())
        elif name != "step":
            yield name if name == "epoch" else f"train/{name}", value


# ---- the libraries


class _TensorBoard:
    """Event files in the run's directory."""

    def __init__(self, beginning: Beginning) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = beginning.id
        again = beginning.step if beginning.resumed else None
        self.writer = SummaryWriter(str(beginning.run.tensorboard), purge_step=again)
        if not beginning.resumed:
            self.writer.add_text("config", f"```toml\n{to_toml(beginning.config)}```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed process has told all it knew

    def close(self, *, finished: bool) -> None:
        self.writer.close()


class _WandB:
    """Weights & Biases, which leaves out steps that it has had: a resumed run's are the same."""

    def __init__(self, beginning: Beginning) -> None:
        import wandb

        self.id = beginning.id
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=beginning.name,
            resume="allow",
            dir=str(beginning.run.path),
            config=affecting(beginning.config),
            settings=wandb.Settings(console="off"),  # stdout and stderr are not its own
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """MLflow, by its client: what another part of the process does with it stays its own."""

    def __init__(self, beginning: Beginning) -> None:
        import mlflow
        from mlflow.entities import Metric, Param

        self.metric = Metric
        self.client = mlflow.MlflowClient()
        if beginning.resumed:
            self.id = beginning.id
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = mlflow.set_experiment(name).experiment_id
        self.id = self.client.create_run(experiment, run_name=beginning.name).info.run_id
        params = [Param(name, str(v)) for name, v in affecting(beginning.config).items()]
        self.client.log_batch(self.id, params=params)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time_ns() // 10**6
        metrics = [self.metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class _Trackio:
    """Trackio, which knows a run by its name."""

    def __init__(self, beginning: Beginning) -> None:
        import trackio

        self.id, self.finish = beginning.id, trackio.finish
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{beginning.name}-{self.id[:8]}",
            config=affecting(beginning.config),
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self.finish()  # not the run's own, which trackio would call again at the end


OPENERS: dict[str, Callable[[Beginning], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
