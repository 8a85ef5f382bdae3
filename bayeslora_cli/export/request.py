"""`ExportOptions`: what to export; and the checks of it that need no model."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bayeslora_cli.config.catalogue import FORMATS, METHODS, formats_of, implementation
from bayeslora_cli.config.options import flag_of
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.export.hub_upload import check_name

MANIFEST = "manifest.json"
PRECISIONS = ("fp32", "bf16")
"""Of weights in an export, the default first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to export and how to check it."""

    format: str
    """A key of `catalogue.FORMATS`."""
    patterns: bool = False
    """Give each matrix a rank and an alpha of its own, in formats that take this option."""
    uniform_rank: bool = False
    """One rank and one alpha for all matrices, which is what formats with `patterns` do anyway."""
    precision: str = "fp32"
    """fp32, or bf16 in formats that take this option: of the weights that are written."""
    target_rank: int | None = None
    """Prune further, to this mean rank per matrix; None: keep the run's ranks."""
    by: str | None = None
    """What orders the ranks that are pruned: a criterion, or singular-values of the products; None:
    the run's own criterion."""
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
        variants = {
            "uniform": self.uniform_rank,
            "patterns": self.patterns,
            self.precision: self.precision != "fp32",
        }
        return "-".join([self.format, *(name for name, asked in variants.items() if asked)])

    @property
    def directory(self) -> str:
        """Name of the directory in RUN/export."""
        if self.target_rank is None:
            return self.name
        return "-".join(filter(None, (self.name, f"r{self.target_rank}", self.by)))


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
    if options.precision not in PRECISIONS:
        raise UserError(f"--precision {options.precision}: choose {' or '.join(PRECISIONS)}")
    _check_variant(options)
    _check_pruning(options, method)
    if push_to_hub is not None:
        check_name(push_to_hub)


def _check_variant(options: ExportOptions) -> None:
    """Refuse options that the format does not take, and those that exclude each other."""
    asked = {
        "patterns": options.patterns,
        "uniform_rank": options.uniform_rank,
        "precision": options.precision != PRECISIONS[0],
    }
    for field, given in asked.items():
        if given and field not in FORMATS[options.format].options:
            takers = ", ".join(n for n, entry in FORMATS.items() if field in entry.options)
            raise UserError(
                f"{flag_of(field)} works only with --format {takers}, not {options.format}"
            )
    if options.patterns and options.uniform_rank:
        raise UserError("--patterns: not together with --uniform-rank, which is one rank for all")


def _check_pruning(options: ExportOptions, method: str) -> None:
    """Refuse to prune without scores or data, and an order of ranks without their number."""
    if options.target_rank is None:
        if options.by is not None:
            raise UserError(
                f"--by {options.by}: it orders what --target-rank R prunes; give R as well"
            )
        return
    if options.by is None and not METHODS[method].allocates_ranks:
        other = "; --by singular-values needs none" if METHODS[method].fixed_rank else ""
        raise UserError(
            f"--target-rank: a run of --method {method} has no scores to prune by{other}"
        )
    if options.check_inputs == "random":
        raise UserError("--target-rank measures on data: leave out --check-inputs random")


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
