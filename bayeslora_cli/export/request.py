"""What to export, and what of it can be refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.export.hub_upload import check_name

MANIFEST = "manifest.json"
# format -> largest difference of a logit, relative to the largest logit where that is above 1
BOUNDS = {"adalora": 1e-5, "lora": 1e-5, "merged": 1e-5, "onnx": 1e-4, "quantized": 0.0}
# method of a run -> formats that it has
FORMATS = {
    "adalora": ("adalora", "lora", "merged", "onnx"),
    "lora": ("lora", "merged", "onnx"),
    "full": ("merged", "onnx"),
    "blora": ("quantized", "lora", "merged", "onnx"),
}
ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """What to export and how to check it."""

    format: str
    """adalora, lora, merged, onnx or quantized."""
    uniform_rank: bool = False
    """lora: pad to one rank and one alpha."""
    target_rank: int | None = None
    """Prune further, to this mean rank of a matrix; None: as the run left it."""
    check_rows: int = 32
    check_inputs: str = "data"
    """data: rows of the task's validation split; random: random tokens."""
    data: str | None = None
    """Directory of the data; None: the one that the run was trained on."""
    file: str | None = None
    """Rows of one's own instead of the validation split."""
    device: str = "auto"
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    @property
    def name(self) -> str:
        """The format, told apart from its variants."""
        return f"{self.format}-uniform" if self.uniform_rank else self.format


def check_options(options: ExportOptions, config: RunConfig, push_to_hub: str | None) -> None:
    """Whether these options go together, with this run, and on this machine.

    Raises:
        UserError: they do not.
    """
    form, method = options.format, config.method
    if form not in BOUNDS:
        raise UserError(f"--format {form}: choose one of {', '.join(BOUNDS)}")
    if options.check_inputs not in ("data", "random"):
        raise UserError(f"--check-inputs {options.check_inputs}: choose data or random")
    for flag, value in (("--data", options.data), ("--eval-file", options.file)):
        if options.check_inputs == "random" and value is not None:
            raise UserError(f"{flag} {value}: not together with --check-inputs random")
    if form not in FORMATS[method]:
        raise UserError(
            f"--format {form}: a run of --method {method} has {', '.join(FORMATS[method])}"
        )
    if form == "quantized" and config.blora_mode == "rank":
        raise UserError("--format quantized: a run of --blora-mode rank has quantized nothing")
    if options.uniform_rank and form != "lora":
        raise UserError(f"--uniform-rank: --format lora alone has it, not {form}")
    if options.target_rank is not None:
        if method != "adalora":
            raise UserError(f"--target-rank: a run of --method {method} has no scores to prune by")
        if options.check_inputs == "random":
            raise UserError("--target-rank measures on data: leave out --check-inputs random")
    missing = [p for p in ONNX_PACKAGES if importlib.util.find_spec(p) is None]
    if form == "onnx" and missing:
        raise UserError(
            f"--format onnx needs {' and '.join(missing)}: pip install 'bayeslora[onnx]'"
        )
    if push_to_hub is not None:
        check_name(push_to_hub)


def check_output(output: Path, *, overwrite: bool) -> None:
    """Whether the directory may be written: nothing is there, or an export that may go.

    Raises:
        RunDirError: it may not.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / MANIFEST).is_file():
        raise RunDirError(f"{output} exists and is no export; give another --output")
    if not overwrite:
        raise RunDirError(f"{output} exists; use --overwrite to replace it, or another --output")
