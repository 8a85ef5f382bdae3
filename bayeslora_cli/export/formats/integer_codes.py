"""B-LoRA's own format: integer codes with their scales and ranges; this package opens it.

    quantized.safetensors   NAME.A (k, in), NAME.E (k,), NAME.B (out, k): codes of the k kept ranks,
                            int8 up to 8 bits, int16 for 16; NAME.W where the base is quantized;
                            NAME.A.range and so on, of activations NAME.x.range, NAME.a.range and
                            NAME.h.range too: (3,) ends of the range and the step that a code stands
                            for; head/NAME and drawn/NAME in fp32
    quantization.json       by matrix rank and widths; the scale alpha / r_init; the classes
    config.toml             the run's settings

A layer computes base(x) + scale Qh(Qa(Qx(x) A') * E) B', with A, E and B codes times their step and
Q(x) = step round(clip(x, range) / step).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.config.files.toml_files import from_toml, to_toml
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.export.formats.format import Format, Snippet
from bayeslora_cli.export.independent_reader import Logits
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.export.verification import logits_from
from bayeslora_cli.methods.blora.gates import BASE, OPERANDS, WEIGHTS
from bayeslora_cli.methods.blora.layer import GatedLinear, Joints, Operands
from bayeslora_cli.methods.blora.operands import publisher_of
from bayeslora_cli.methods.blora.report import cost_of, sizes_of
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.adapters.layer import LowRankLinear
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.models.kernels.quantize import Quantizers, codes
from bayeslora_cli.runs.atomic_write import write_json, write_text
from bayeslora_cli.runs.model_card import trust_argument
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.task import Task, usual_objective

SCHEMA = 1
CODES, FACTS, CONFIG = "quantized.safetensors", "quantization.json", "config.toml"


class IntegerCodes(Format):
    """Integer codes of a B-LoRA adapter with their scales and the ranges of its activations."""

    keeps = frozenset({*OPERANDS, BASE})

    def check(self, config: RunConfig) -> None:
        """Refuse a run whose operands are not quantized.

        Raises:
            UserError: the run learned only ranks.
        """
        if config.blora_mode == "rank":
            raise UserError("--format quantized: a run of --blora-mode rank has quantized nothing")

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write the codes; return the cost in bit operations, ranks and bit widths."""
        return save_quantized(network, config, network.bank.mean, network.bank.mask, directory)

    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Rebuild the run's network from the codes and the backbone."""
        network = load_quantized(directory, device, trust_remote_code=config.trust_remote_code)
        return logits_from(network)

    def description(self, options: ExportOptions) -> str:
        return (
            "These are the adapter's integer codes with their scales and the ranges of its "
            "activations,\nfor bayeslora; `quantization.json` has each matrix's rank and bit "
            "widths."
        )

    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the codes with this package."""
        return Snippet(
            packages=("from bayeslora_cli import load_quantized",),
            load=(f"network = load_quantized(directory{trust_argument(config)})",),
            predict=("with torch.no_grad():", "    logits = network.model_logits(inputs)"),
            generate=(),
            opens_hub_names=False,
        )


QUANTIZED = IntegerCodes()


@torch.no_grad()
def save_quantized(
    network: Network, config: RunConfig, mean: Tensor, mask: Tensor, directory: Path
) -> dict[str, Any]:
    """Write the files; return the manifest's entries.

    Args:
        mean: flat parameters (N,).
        mask: kept ranks (n, r), the first of each matrix.
    """
    operands = publisher_of(network)
    gates = operands.parameters
    assert gates.plan.operands  # `IntegerCodes.check` refuses other runs
    found = gates.widths(mean)
    constants = gates.thresholded(mean).constants
    tensors: dict[str, Tensor] = {}
    for index, (name, layer) in enumerate(network.adapters.items()):
        kept = int(mask[index].sum())
        for place, operand in enumerate(gates.plan.operands):
            own = constants[index, place]
            tensors[f"{name}.{operand}.range"] = own
            if operand in WEIGHTS:
                value = _weight(network, layer, name, operand, mean, kept)
                whole = codes(value.float().reshape(1, -1), own[None]).view(value.shape)
                kind = torch.int8 if found[index][operand] <= 8 else torch.int16
                tensors[f"{name}.{operand}"] = whole.to(kind)
    for name, segment in network.bank.segments.items():
        if segment.role == "head":
            tensors[f"head/{name}"] = segment.view(mean)
    tensors |= {f"drawn/{name}": value for name, value in network.drawn.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.cpu().clone().contiguous() for name, value in tensors.items()},
        directory / CODES,
    )
    sizes = sizes_of(network, found, mask)
    scale = operands.layers[0].scale
    objective = network.objective
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "scale": scale,
        "classes": list(objective.classes),
        "matrices": [
            {"name": name, "in": s.width, "out": s.height, "rank": s.rank, "bits": dict(s.bits)}
            for name, s in zip(network.adapters, sizes, strict=True)
        ],
        "cost": cost_of(network, sizes).to_json(),
    }
    if objective.name != usual_objective(objective.classes):
        facts["objective"] = objective.name
    write_json(directory / FACTS, facts)
    write_text(directory / CONFIG, to_toml(config))
    return {"cost": facts["cost"], "matrices": facts["matrices"]}


def _weight(
    network: Network, layer: LowRankLinear, name: str, operand: str, mean: Tensor, kept: int
) -> Tensor:
    if operand == BASE:
        return layer.base_layer.oriented(layer.base_layer.dense())
    value = network.bank.segments[f"{name}.lora_{operand}"].view(mean)
    if operand == "E":
        return value[:kept, 0]
    return value[:kept] if operand == "A" else value[:, :kept]


@torch.no_grad()
def load_quantized(
    directory: str | Path, device: torch.device | str = "cpu", *, trust_remote_code: bool = False
) -> Network:
    """Build the network of an export from its directory and the backbone that it names.

    It is ready for `logits`, in evaluation mode.

    Raises:
        UserError: files are missing or corrupt, or there is no such backbone.
    """
    directory, device = Path(directory), torch.device(device)
    try:
        text = (directory / CONFIG).read_text(encoding="utf-8")
        facts = _read_facts(directory / FACTS)
        tensors = load_file(directory / CODES, device=str(device))
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise RunDirError(f"{directory} is no quantized export: {error}") from error
    config = from_toml(text, str(directory / CONFIG))
    classes = facts["classes"]
    network = build_network(
        config,
        build_objective(facts.get("objective", usual_objective(classes)), classes),
        load_tokenizer(config.model, trust_remote_code=trust_remote_code),
        posterior=False,
        device=device,
    )
    operands = publisher_of(network)
    try:
        for name, segment in network.bank.segments.items():
            if segment.role == "head":
                segment.view(network.bank.mean).copy_(tensors[f"head/{name}"])
        for name in network.drawn:
            network.set_drawn(name, tensors[f"drawn/{name}"])
        for name, layer in zip(network.adapters, operands.layers, strict=True):
            own = {o: tensors[f"{name}.{o}.range"] for o in operands.plan.operands}
            values = {o: tensors[f"{name}.{o}"].float() * own[o][2] for o in own if o in WEIGHTS}
            layer.operands = _operands(layer, operands.computed_rank, own, values)
        Joints(operands.layers, network.joints, device).stack()
    except (KeyError, RuntimeError) as error:
        raise RunDirError(f"{directory / CODES} is corrupt: {error}") from error
    network.operands = None  # the layers now hold all their operands
    network.bank.publish()
    network.module.eval()
    return network


def _operands(
    layer: GatedLinear, computed_rank: int, own: dict[str, Tensor], values: dict[str, Tensor]
) -> Operands:
    """Make a layer's operands; pruned ranks are zeros, so that sums equal the run's to the bit."""
    missing = computed_rank - len(values["E"])
    # -ln beta is never trained here and may have any value
    quantizers = {name: Quantizers(found[None, 1:], found[None]) for name, found in own.items()}
    if BASE in values:
        layer.base_layer.replace_dense(layer.base_layer.oriented(values[BASE]))
    return Operands(
        a=F.pad(values["A"], (0, 0, 0, missing)),
        e=F.pad(values["E"], (0, missing)),
        b=F.pad(values["B"] * layer.scale, (0, missing)),
        of_input=quantizers["x"],
        of_a=quantizers["a"],
        of_h=quantizers["h"],
        of_base=quantizers.get(BASE),
    )


def _read_facts(path: Path) -> dict[str, Any]:
    import json

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] == SCHEMA and isinstance(found["classes"], list):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirError(f"{path} is corrupt: {error}") from error
    raise RunDirError(f"{path} is not of this version")
