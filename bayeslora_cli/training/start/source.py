"""`Source`: what was learned before, read from a run or an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import file_digest
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bayeslora_cli.config.catalogue import METHODS
from bayeslora_cli.config.files.start_sources import ADAPTER, MERGED, RUN, kind_of_source
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.export.cut_adapter import WEIGHTS, read_adapter
from bayeslora_cli.models.adapters.layer import RANK_EPSILON
from bayeslora_cli.runs.directory import RunDir


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What was learned before, on the CPU."""

    factors: dict[str, dict[str, Tensor]]
    """By matrix: A (k, in), B (out, k) and, of AdaLoRA, E (k, 1)."""
    scales: dict[str, float]
    """Factor of each product B diag(E) A."""
    others: dict[str, Tensor]
    """Other trained weights by name: the head, or all weights."""
    sigma: dict[str, Tensor] = field(default_factory=dict)
    """Standard deviations by parameter name, of a run with a posterior."""
    drawn: dict[str, Tensor] = field(default_factory=dict)
    """Frozen tensors that the checkpoint lacked and the run drew, by name."""
    checksum: str = ""


def read_source(path: str, name: str) -> Source:
    """Read what a directory holds; `name` is the option, for messages.

    Raises:
        UserError: it holds nothing that a run can begin with.
    """
    kind = kind_of_source(path)
    if kind == RUN:
        return _read_run(RunDir.open(Path(path)), name)
    if kind == ADAPTER:
        adapter = read_adapter(Path(path))
        prefix = "base_model.model."
        return Source(
            factors={
                matrix.removeprefix(prefix): {"A": down, "B": up}
                for matrix, (up, down) in adapter.factors.items()
            },
            scales=dict.fromkeys((m.removeprefix(prefix) for m in adapter.factors), 1.0),
            others={n.removeprefix(prefix): tensor for n, tensor in adapter.others.items()},
            checksum=_sha256(Path(path) / WEIGHTS),
        )
    if kind == MERGED:  # its weights, head included, are those that --model loads
        return Source(factors={}, scales={}, others={}, checksum="")
    raise UserError(
        f"{name}: is no finished run, no adapter with adapter_config.json, and no model with "
        "config.json"
    )


def _read_run(run: RunDir, name: str) -> Source:
    config = run.read_config()
    if "quantized" in METHODS[config.method].formats:
        raise UserError(f"{name}: a run of --method {config.method} has quantized factors")
    run.verify(run.posterior)
    try:
        tensors = load_file(run.posterior)
    except FileNotFoundError as error:
        raise RunDirError(f"{name}: the run has not finished") from error
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{name}: {run.posterior} is corrupt: {error}") from error
    parts = {
        kind: {
            n.removeprefix(f"{kind}/"): t for n, t in tensors.items() if n.startswith(f"{kind}/")
        }
        for kind in ("mean", "sigma", "drawn")
    }
    factors: dict[str, dict[str, Tensor]] = {}
    others = {}
    for parameter, tensor in parts["mean"].items():
        matrix, found, part = parameter.rpartition(".lora_")
        if found:
            factors.setdefault(matrix, {})[part] = tensor
        else:
            others[parameter] = tensor
    rank = config.init_rank + (RANK_EPSILON if any("E" in f for f in factors.values()) else 0)
    return Source(
        factors=factors,
        scales=dict.fromkeys(factors, config.alpha / rank),
        others=others,
        sigma=parts["sigma"],
        drawn=parts["drawn"],
        checksum=_sha256(run.posterior),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
