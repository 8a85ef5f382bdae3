"""`train` and `plan`: train a run, or describe what it would be.

Importing this module is fast: torch is imported when a function is called. Error messages name
options as on the command line: `--target-rank` is the keyword `target_rank`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bayeslora_cli.api.run import Run
from bayeslora_cli.config.files.foreign_names import hint
from bayeslora_cli.config.files.toml_files import from_file
from bayeslora_cli.config.resolution import Resolved, resolve
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.training.run_log import Reporter as Reporter

if TYPE_CHECKING:
    from bayeslora_cli.training.assembly import Workspace

Verb = TypeVar("Verb", bound=Callable[..., Any])


def _takes_options(verb: Verb) -> Verb:
    """Add the options of a run to a function's signature, for `help` and for completion."""
    own = inspect.signature(verb).parameters.values()
    named = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=o.type)
        for name, o in OPTIONS.items()
    ]
    verb.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return verb


def _resolved(options: Mapping[str, Any], preset: str | Path | None) -> Resolved:
    """Resolve the options of `train` and `plan`.

    Raises:
        ConfigError: names are unknown or types are wrong, or `resolve` finds problems; the message
            lists all of them.
    """
    problems, typed = [], {}
    for name, value in options.items():
        if name not in OPTIONS:
            ours = hint(name, _spelled, lambda known: known in OPTIONS or known == "preset")
            told = nearest(name, OPTIONS) if ours is None else f"; {ours}"
            problems.append(f"{name}: no option of a run{told}")
        elif value is not None:
            plain = list(value) if isinstance(value, tuple) else value
            try:
                typed[name] = from_file(name, str(plain) if isinstance(plain, Path) else plain)
            except TypeError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return resolve(typed, None if preset is None else str(preset))


def _spelled(name: str, value: str) -> str:
    return f"{name}={value!r}" if value else name


@_takes_options
def train(
    *,
    preset: str | Path | None = None,
    reporter: Reporter | None = None,
    workspace: Workspace | None = None,
    **options: Any,
) -> Run:
    """Train a run, resume it, or return the run that is already there.

        run = bl.train(task="mrpc", criterion="snr", seed=2021)

    The defaults are those of `bayeslora train`: the task's preset, the paper's settings. The same
    call again, after an interrupt too, continues the run.

    Args:
        preset: name or file of settings to start from.
        reporter: is called at each step; None: nothing is shown. Log messages go to the logger
            "bayeslora".
        workspace: from `workspace()`, to train several runs one after another.
        options: the fields of `RunConfig`, as `bayeslora train --help-all` explains them; None:
            the default. Rates are per step, lengths in tokens, intervals in steps.
    Raises:
        ConfigError: names are unknown, or values do not fit together; all problems at once.
        UserError: data or model cannot be used, or another process trains the run; the message
            tells the remedy.
        NonFiniteError: the run diverged.
        BayesloraError: out of GPU memory, or a file could not be written.
    """
    return train_resolved(_resolved(options, preset), reporter, workspace=workspace)


def train_resolved(
    resolved: Resolved,
    reporter: Reporter | None = None,
    *,
    stop: Stop | None = None,
    workspace: Workspace | None = None,
    processes: Processes = SINGLE,
) -> Run:
    """Train with resolved options; for callers that handle signals or several processes.

    Args:
        stop: from `signals.listening`; None: signals have their ordinary effect.
        processes: the processes of the job, which train the run together.
    Raises:
        BayesloraError: an error of `train`, or `Preempted`: a signal came, and the state is saved.
    """
    from bayeslora_cli.training.loop import train as run_training

    found = run_training(resolved, reporter, stop, workspace, processes)
    config = resolved.config
    return Run(found.path, device=config.device, trust_remote_code=config.trust_remote_code)


def workspace() -> Workspace:
    """Return an object that keeps rows, and the network if it fits, for the next `train`."""
    from bayeslora_cli.training.assembly import Workspace

    return Workspace()


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Plan:
    """What a run would be, and what it would need; nothing was trained."""

    config: RunConfig
    """Every option's final value."""
    path: Path
    """The run's directory, which need not exist."""
    facts: Mapping[str, Any]
    """The JSON object that `bayeslora train --dry-run --json` prints."""

    @property
    def memory(self) -> dict[str, int | None]:
        """Bytes at a step's peak, at least: `weights`, `trained_and_optimizer`, `activations`.

        A value is None if it is not known on this device.
        """
        return dict(self.facts["memory_bytes"])

    def describe(self) -> str:
        """Return the text that `bayeslora train --dry-run` prints."""
        from bayeslora_cli.training.plan import describe_plan

        return describe_plan(dict(self.facts))

    def to_json(self) -> dict[str, Any]:
        """Return `facts`."""
        return dict(self.facts)

    def __repr__(self) -> str:
        return self.describe()


@_takes_options
def plan(
    *, preset: str | Path | None = None, gpu_memory: float | None = None, **options: Any
) -> Plan:
    """Describe a run before it is trained: options, data, schedule, sizes, memory.

    Args:
        preset, options: as for `train`.
        gpu_memory: GiB of the GPU that the run is meant for; None: that of this machine's GPU, if
            it has one.
    Raises:
        UserError: an error that `train` would raise before its first step.
    """
    return plan_resolved(_resolved(options, preset), gpu_memory=gpu_memory)


def plan_resolved(
    resolved: Resolved,
    *,
    workspace: Workspace | None = None,
    processes: int = 1,
    gpu_memory: float | None = None,
) -> Plan:
    """Describe a run with resolved options before it is trained.

    Args:
        workspace: keeps rows and tokens of earlier plans.
        processes: number of processes that share the batches; the memory is that of one.
        gpu_memory: as for `plan`.
    Raises:
        ConfigError: `gpu_memory` is not above 0.
    """
    from bayeslora_cli.training.plan import dry_run
    from bayeslora_cli.training.preparation import prepare

    if gpu_memory is not None and not 0 < gpu_memory < float("inf"):
        raise ConfigError([f"--gpu-memory {gpu_memory:g}: must be above 0, in GiB"])
    prepared = prepare(resolved, None if workspace is None else workspace.examples)
    facts = dry_run(prepared, resolved, processes, gpu_memory)
    return Plan(config=prepared.config, path=prepared.run.path, facts=facts)
