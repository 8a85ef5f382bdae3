"""Experiment trackers: they log what is written to metrics.jsonl, each through its own library.

An error of a tracker never stops the training: it is reported once, and that tracker is no longer
used. Projects, servers and offline modes are set by the libraries' own environment variables:
WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, TRACKIO_DIR and the like.
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
from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.atomic_write import write_json
from bayeslora_cli.runs.directory import RunDir

logger = logging.getLogger("bayeslora")

PROJECT = "bayeslora"
"""The project's name unless the library's own variable gives another."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the libraries are installed, before anything is computed.

    Raises:
        UserError: a library is missing.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--log-to {name}: needs {name}; pip install 'bayeslora[{name}]'")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """The facts with which a tracker is opened."""

    run: RunDir
    config: RunConfig
    id: str
    """Identifies the tracker's run when it is resumed; the tracker may replace it by its own id."""
    resumed: bool
    """Whether an earlier process logged this run to the tracker."""
    step: int
    """Number of steps done. Later steps that an earlier process logged are logged again."""

    @property
    def name(self) -> str:
        """Name of the run in the tracker: the last two parts of its path."""
        return "/".join(self.run.path.resolve().parts[-2:])


class Tracker(Protocol):
    """One run in one tracker."""

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step, counted from 0."""

    def close(self, *, finished: bool) -> None:
        """Close the tracker in this process; `finished`: the run itself has ended, too."""


class Trackers:
    """All trackers of a run: opened by `start`, closed when the context ends."""

    def __init__(self, run: RunDir, config: RunConfig) -> None:
        """Take the run and its configuration; nothing is opened before `start`."""
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
        """Open the trackers, or continue the runs that an earlier process opened in them.

        Args:
            step: number of steps done.
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
        """Read the ids of an earlier process's trackers, by name."""
        if not self.run.trackers.is_file():
            return {}
        try:
            return self.run.read_json(self.run.trackers)
        except UserError as error:
            logger.warning("%s; the trackers start new runs", error)
            return {}

    def _opened(self, name: str, beginning: Beginning) -> None:
        self._open[name] = OPENERS[name](beginning)

    def log(self, line: Mapping[str, Any]) -> None:
        """Log a line of metrics.jsonl."""
        self._tell(line["step"], dict(_flat(line)))

    def summary(self, result: Mapping[str, Any]) -> None:
        """Log the metrics of the best evaluation at the final budget from result.json."""
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
            with redirect_stdout(sys.stderr):  # stdout is for the result only
                action()
        except Exception as error:
            self._open.pop(name, None)
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning(
                "--log-to %s: %s; it is no longer used, metrics.jsonl has everything", name, what
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
        self.writer.flush()  # nothing is lost if the process is killed

    def close(self, *, finished: bool) -> None:
        self.writer.close()


class _WandB:
    """Weights & Biases. It ignores steps it already has; a resumed run logs the same numbers."""

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
            settings=wandb.Settings(console="off"),  # it must not capture stdout and stderr
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """MLflow, used by its client, so that no run becomes the process's active run."""

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
    """Trackio, which identifies a run by its name."""

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
        self.finish()  # not the run's own `finish`, which trackio would call again at the end


OPENERS: dict[str, Callable[[Beginning], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
