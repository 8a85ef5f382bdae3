"""Builds a network: loads a backbone, adapts it by a method, moves trained tensors to a bank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from bayeslora_cli.config.catalogue import OFF
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.methods.method import LayerMaker, find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.methods.recomputation import recompute_blocks
from bayeslora_cli.models.adapters.adapted_linear import AdaptedLinear
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from bayeslora_cli.models.adapters.decoder_blocks import inside_mlps, join_blocks
from bayeslora_cli.models.adapters.dense import DenseLinear
from bayeslora_cli.models.adapters.layer import JointLinear, LowRankLinear, join
from bayeslora_cli.models.adapters.published_factors import PublishedFactors
from bayeslora_cli.models.backbones.deberta_attention import replace_attention
from bayeslora_cli.models.backbones.loading import load_backbone
from bayeslora_cli.models.backbones.packing import packs, prepare_for_packing
from bayeslora_cli.models.backbones.targets import inside, match_targets, recorded_targets
from bayeslora_cli.models.base_weights.selection import BaseWeights
from bayeslora_cli.models.encoders.fused.feed_forward import join_feed_forward
from bayeslora_cli.models.encoders.fused.residual_norms import fuse_residual_norms, share_seeds
from bayeslora_cli.models.encoders.relative_attention import RelativeAttention
from bayeslora_cli.models.sharding.divide import divide_blocks
from bayeslora_cli.models.sharding.loading import load_to_divide
from bayeslora_cli.models.sharding.sharded_linear import ShardedLinear
from bayeslora_cli.models.sharding.stored_weights import StoredWeights
from bayeslora_cli.tasks.objectives.objective import Objective


def build_network(
    config: RunConfig,
    objective: Objective,
    tokenizer: Any,
    *,
    posterior: bool,
    device: torch.device,
    form: Callable[[nn.Module], AdaptedLinear] | None = None,
    adapted: bool = True,
    recorded: Sequence[str] = (),
    mesh: DeviceMesh | None = None,
) -> Network:
    """Load the backbone, adapt it, move it to the device and build its bank.

    Args:
        posterior: whether the optimizer samples the weights.
        device: meta: build only the shapes, without reading weights.
        form: constructor that gets the layer to replace; it decides how the frozen weight lies in
            memory. None: as --base-precision says.
        adapted: False: the backbone as it is, whose layers need not be ones that can be adapted.
        recorded: names of the layers that a finished run has adapted; (): those that
            --target-modules matches.
        mesh: the processes that the blocks' frozen weights are divided among; None: they are not.
    Raises:
        ModelError: raised by `load_backbone` or `match_targets`, or the rank is larger than every
            layer.
    """
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    method = find_method(config.method)
    make_layer = method.layer_maker(config)
    typed = config.base_precision if form is None else None
    base = BaseWeights(typed, dtype, device, head=objective.entry.head, divided=mesh is not None)
    weights: StoredWeights | None = None
    if mesh is None or base.form is not None:
        module, head, missing = load_backbone(
            config,
            objective,
            tokenizer,
            device=device,
            dtype=torch.float32 if make_layer is None else dtype,  # trained weights stay fp32
            streaming=base.streaming,
        )
    else:
        form = form or ShardedLinear
        module, head, missing, weights = load_to_divide(config, objective, tokenizer, dtype)
    pretrained = (
        tensor if weights is None else weights.tensor(name)
        for name, tensor in list(module.named_parameters())
        if name not in missing and not inside(name, head)
    )
    replace_attention(module, config.max_length)
    packed = objective.entry.packed and packs(config.packing, module.config, head=bool(head))
    if packed or (objective.entry.packed and not head):
        prepare_for_packing(module, head=bool(head))
    backbone_sha256 = "" if device.type == "meta" else base.fingerprint(pretrained)
    module.requires_grad_(make_layer is None)
    for name in head:
        module.get_submodule(name).requires_grad_(True)
    drawn = {
        name: tensor.detach().to(
            torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True
        )
        for name, tensor in module.state_dict().items()
        if name in missing and not inside(name, head) and make_layer is not None
    }

    adapters: dict[str, LowRankLinear] = {}
    base.choose(module, head)
    if make_layer is not None and adapted:
        targets = recorded_targets(module, recorded) or match_targets(
            module, head, config.target_modules
        )
        adapters = _adapt(module, targets, config, make_layer, form or base)
    base.freeze(module, adapters)

    if mesh is None:
        module.to(device)
    matrices = [Matrix(name=n, a=m.lora_A, b=m.lora_B, e=m.lora_E) for n, m in adapters.items()]
    low_rank = {id(p) for m in matrices for p in (m.a, m.b, m.e)}
    _cast(module, head, low_rank, dtype)
    for name in head:
        module.get_submodule(name).register_forward_pre_hook(_inputs_to_float)
    if config.gradient_checkpointing != OFF:
        recompute_blocks(module, config.gradient_checkpointing, device)
    if head:  # language models get it with each pass: their exports generate text with a cache
        module.config.use_cache = False

    others = [
        (name, "head" if inside(name, head) else "full", parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in low_rank
    ]
    others += method.parameters(config, adapters)
    joints = _joints(module, device, decoder=not objective.entry.head) if adapters else []
    if device.type == "cuda" and adapters and mesh is None:
        _fuse(module, config, adapters.values(), joints, device)
    if mesh is not None:
        divide_blocks(module, mesh, device, weights)
    bank = AdapterBank(matrices, others, posterior=posterior, device=device, compute_dtype=dtype)
    if adapters:
        bank.factors = PublishedFactors(bank, list(adapters.values()), dtype, joints)
    return Network(
        module=module,
        objective=objective,
        bank=bank,
        compute_dtype=dtype,
        adapters=adapters,
        joints=tuple(joints),
        head=head,
        packed=packed,
        drawn=drawn,
        backbone_sha256=backbone_sha256,
        operands=method.operands(config, bank, adapters, dtype),
        divided=mesh is not None,
    )


def _adapt(
    module: nn.Module, targets: Sequence[str], config: RunConfig, make_layer: LayerMaker,
    form: BaseWeights | Callable[[nn.Module], AdaptedLinear],
) -> dict[str, LowRankLinear]:  # fmt: skip
    """Put adapted layers in the places of the targets; return them by name.

    Args:
        make_layer: the method's constructor.
        form: makes of a layer the form in which its frozen weight lies in memory.
    """
    _check_rank(config.init_rank, [module.get_submodule(name) for name in targets])
    generator = torch.Generator().manual_seed(config.seed)
    adapters = {}
    for name in targets:
        layer = module.get_submodule(name)
        base = form.make(name, layer) if isinstance(form, BaseWeights) else form(layer)
        adapters[name] = make_layer(base, config.init_rank, config.alpha, generator)
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, adapters[name])
    return adapters


def _cast(
    module: nn.Module, head: Sequence[str], low_rank: Collection[int], dtype: torch.dtype
) -> None:
    """Cast the parameters, but not those that a form of frozen weights stores in its own types.

    Buffers are not cast: rotary angles need fp32.

    Args:
        low_rank: ids of the adapters' factors, which stay fp32.
        dtype: that of the frozen weights.
    """
    forms = [m for m in module.modules() if isinstance(m, AdaptedLinear)]
    stored = {id(tensor) for form in forms for tensor in form.stored()}
    for name, parameter in module.named_parameters():
        if id(parameter) in stored:
            continue
        # logits need fp32: a bf16 regression output has three digits
        exact = inside(name, head) or id(parameter) in low_rank
        # weights that are trained are fp32 in the bank; those under a head were always rounded
        exact |= not head and parameter.requires_grad
        parameter.data = parameter.data.to(torch.float32 if exact else dtype)


def _check_rank(rank: int, layers: Sequence[nn.Module]) -> None:
    """Refuse a rank that no layer can have, as a foreign configuration may name: memory is finite.

    Raises:
        ModelError: it is larger than the sides of all layers' weights.
    """
    # by the largest side, although the smaller one bounds the rank: a little too much does no harm
    largest = max((max(p.shape) for m in layers for p in m.parameters() if p.dim() == 2), default=0)
    if rank > largest > 0:
        raise ModelError(
            f"--init-rank {rank}: the largest layer to adapt is {largest} wide; give a rank below"
        )


def _joints(module: nn.Module, device: torch.device, *, decoder: bool) -> list[JointLinear]:
    """Join the projections that see the same input, where their form can be joined.

    Args:
        device: where the module is.
        decoder: whether the blocks of decoders are among them. A classifier on a decoder keeps
            separate products: joint ones round otherwise.
    """
    attentions = [found for found in module.modules() if isinstance(found, RelativeAttention)]
    for attention in attentions:
        projections = (attention.query_proj, attention.key_proj, attention.value_proj)
        # a CPU has no operator for several layers of other classes, such as those that quantize
        # their own input, and they would compute values of the positions too
        known = [layer for layer in projections if isinstance(layer, LowRankLinear)]
        layers = [x for x in known if type(x) is LowRankLinear or device.type == "cuda"]
        attention.joint = join(layers) if len(layers) == len(projections) else None
    found = [attention.joint for attention in attentions if attention.joint is not None]
    return [*found, *(join_blocks(module) if decoder else ())]


def _fuse(
    module: nn.Module, config: RunConfig, layers: Iterable[LowRankLinear],
    joints: Sequence[JointLinear], device: torch.device,
) -> None:  # fmt: skip
    """Have a GPU compute products by halves, feed-forward layers and norms by our operators."""
    split = config.precision == "fp32" and _keep_halves(module, layers, joints) > 0
    # the operator keeps what --gradient-checkpointing selective computes again
    if config.gradient_checkpointing != "selective" and not split:
        join_feed_forward(module)
    fuse_residual_norms(module)
    share_seeds(module, device)


def _keep_halves(
    module: nn.Module, layers: Iterable[LowRankLinear], joints: Sequence[JointLinear]
) -> int:
    """Have products of fp32 computed by halves, where a GPU is fast that way; count them."""
    # layers of other classes, and MLPs of decoders, compute their products themselves
    own = inside_mlps(module)
    known = [m for m in layers if type(m) is LowRankLinear and id(m) not in own]
    together = [joint for joint in joints if all(m in known for m in joint.layers)]
    apart = [m for m in known if not any(m in joint.layers for joint in joints)]
    forms = [*(joint.base_layer for joint in together), *(layer.base_layer for layer in apart)]
    return sum(form.keep_halves() for form in forms if type(form) is DenseLinear)


def _inputs_to_float(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )
