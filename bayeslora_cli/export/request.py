"""`ExportOptions`: what to export; and the checks of it that need no model."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bayeslora_cli.config.catalogue import FORMATS, METHODS, formats_of, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.export.hub_upload import check_name

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to export and how to check it."""

    format: str
    """A key of `catalogue.FORMATS`."""
    uniform_rank: bool = False
    """Pad all matrices to one rank and one alpha, in formats that take this option."""
    target_rank: int | None = None
    """Prune further, to this mean rank per matrix; None: keep the run's ranks."""
    check_rows: int = 32
    check_inputs: str = "data"
    """data: rows of the task's validation split; random: random tokens."""
    data: str | None = None
    """Directory of the data; None: the one that the run was trained on."""
    file: str | None = None
    """A user's own rows instead of the validation split."""
    device: str = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @property
    def name(self) -> str:
        """The format, with its variant if it has one."""
        return f"{self.format}-uniform" if self.uniform_rank else self.format

    @property
    def directory(self) -> str:
        """Name of the directory in RUN/export."""
        return self.name if self.target_rank is None else f"{self.name}-r{self.target_rank}"


def check_options(options: ExportOptions, config: RunConfig, push_to_hub: str | None) -> None:
    """Refuse options that exclude each other, do not fit the run, or cannot work on this machine.

    Raises:
        UserError: the options cannot be used; the message gives the reason.
    """
    name, method = options.format, config.method
    if name not in FORMATS:
        raise UserError(f"--format {name}: choose one of {', '.join(FORMATS)}")
    if options.check_inputs not in ("data", "random"):
        raise UserError(f"--check-inputs {options.check_inputs}: choose data or random")
    for flag, value in (("--data", options.data), ("--eval-file", options.file)):
        if options.check_inputs == "random" and value is not None:
            raise UserError(f"{flag} {value}: not together with --check-inputs random")
    if name not in formats_of(method):
        raise UserError(
            f"--format {name}: a run of --method {method} can be exported as "
            f"{', '.join(formats_of(method))}"
        )
    _check_packages(name)
    implementation(FORMATS[name].implementation).check(config)
    if options.uniform_rank and "uniform_rank" not in FORMATS[name].options:
        takers = ", ".join(n for n, entry in FORMATS.items() if "uniform_rank" in entry.options)
        raise UserError(f"--uniform-rank works only with --format {takers}, not {name}")
    if options.target_rank is not None:
        if not METHODS[method].allocates_ranks:
            raise UserError(f"--target-rank: a run of --method {method} has no scores to prune by")
        if options.check_inputs == "random":
            raise UserError("--target-rank measures on data: leave out --check-inputs random")
    if push_to_hub is not None:
        check_name(push_to_hub)


def _check_packages(name: str) -> None:
    entry = FORMATS[name]
    missing = [p for p in entry.packages if importlib.util.find_spec(p) is None]
    if missing:
        where = missing if entry.extra is None else [f"'bayeslora[{entry.extra}]'"]
        raise UserError(
            f"--format {name} needs {' and '.join(missing)}: pip install {' '.join(where)}"
        )


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a directory that holds anything but an export that may be replaced.

    Raises:
        RunDirError: the directory cannot be used; the message gives the reason.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise RunDirError(f"{output} exists and is not an export; give another --output")
    if not overwrite:
        raise RunDirError(f"{output} exists; use --overwrite to replace it, or another --output")
