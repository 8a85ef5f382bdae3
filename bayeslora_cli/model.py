"""The backbone and what of it is trained; sole importer of `transformers`.

PEFT's rules match the targets, so that a name means here what it means there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import AdaLoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from bayeslora_cli.adapters import LowRankLinear, adalora_linear, lora_linear
from bayeslora_cli.bank import AdapterBank, Matrix
from bayeslora_cli.config import RunConfig
from bayeslora_cli.errors import ModelError

HEADS = ("classifier", "score", "classification_head")  # what transformers calls them
# RoBERTa's kin count positions from behind the padding token's index, 1: two are never used
POSITIONS_FROM_PADDING = (
    "camembert", "data2vec-text", "longformer", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
logger = logging.getLogger("bayeslora")
# what transformers raises for a name or directory that it cannot load
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What the head predicts."""

    classes: tuple[str, ...]
    """Names of the classes; empty for regression."""

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return max(1, len(self.classes))

    @property
    def regression(self) -> bool:
        """One real number instead of classes."""
        return not self.classes


@dataclass(kw_only=True, slots=True)
class Network:
    """A backbone made ready for training."""

    module: Any
    """transformers' sequence classifier, its adapted layers replaced."""
    labels: Labels
    bank: AdapterBank
    adapters: dict[str, LowRankLinear]
    """Adapted layers by name, in the model's order."""
    head: tuple[str, ...]
    """Names of the modules that make up the head."""
    drawn: dict[str, Tensor]
    """fp32 copies of frozen tensors that the checkpoint lacked and this run drew."""

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Forward pass: (batch, outputs) in fp32. Labels are never passed to the backbone."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = self.module(**inputs).logits
        return logits.float()

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace a frozen tensor that the checkpoint lacks by the one another process drew."""
        owner, _, last = name.rpartition(".")
        module = self.module.get_submodule(owner)
        target = getattr(module.base_layer if owner in self.adapters else module, last)
        assert isinstance(target, Tensor)
        with torch.no_grad():
            target.copy_(value)
        self.drawn[name] = value


def load_tokenizer(name: str) -> Any:
    """The backbone's tokenizer.

    Raises:
        ModelError: there is none to be had.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(name, "tokenizer", error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _cannot_load(name: str, what: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"--model {name}: cannot load the {what}: {first} "
        "(give a directory that holds one, or a hub name that can be reached)"
    )


def usable_length(name: str, tokenizer: Any) -> int | None:
    """The longest input in tokens that the backbone has positions for; None: no limit known.

    Raises:
        ModelError: no configuration to be had.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(name, "configuration", error)) from error
    limits = [n for n in (tokenizer.model_max_length,) if n < 10**6]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        offset = 2 if config.model_type in POSITIONS_FROM_PADDING else 0
        limits.append(positions - offset)
    return min(limits) if limits else None


def load_backbone(
    config: RunConfig, labels: Labels, tokenizer: Any
) -> tuple[Any, tuple[str, ...], set[str]]:
    """A pretrained sequence classifier in fp32.

    What the checkpoint lacks is drawn from torch's generator, seeded with the run's seed.

    Returns:
        The module, the names of its head's modules, and of tensors that its checkpoint lacked.
    Raises:
        ModelError: no such model, none for sequence classification, or a checkpoint of another.
    """
    transformers_logging.set_verbosity_error()  # what it says of missing tensors, we say shorter
    transformers_logging.disable_progress_bar()
    torch.manual_seed(config.seed)
    options: dict[str, Any] = {"num_labels": labels.outputs, "dtype": torch.float32}
    if labels.classes:
        options["id2label"] = dict(enumerate(labels.classes))
        options["label2id"] = {name: index for index, name in enumerate(labels.classes)}
        options["problem_type"] = "single_label_classification"
    else:
        options["problem_type"] = "regression"
    module: Any
    try:
        module, loading = AutoModelForSequenceClassification.from_pretrained(
            config.model, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(config.model, "sequence classifier", error)) from error
    # a decoder's classifier looks for the last token before the padding that it knows
    module.config.pad_token_id = tokenizer.pad_token_id
    head = head_modules(module)
    missing = set(loading["missing_keys"])
    mismatched = {entry[0] for entry in loading.get("mismatched_keys", ())}
    _check_checkpoint(config.model, module, missing, mismatched, head)
    return module, head, missing


def _check_checkpoint(
    name: str, module: Any, missing: set[str], mismatched: set[str], head: Sequence[str]
) -> None:
    """Refuse a checkpoint that does not hold the backbone, which would train a random one."""
    backbone = [n for n in module.state_dict() if not inside(n, head)]
    absent = [n for n in backbone if n in missing]
    if 2 * len(absent) > len(backbone):
        raise ModelError(
            f"--model {name}: the checkpoint lacks {len(absent)} of {len(backbone)} tensors of "
            f"{type(module).__name__}, {absent[0]} for one; it is no checkpoint of this backbone"
        )
    wrong = sorted(n for n in mismatched if not inside(n, head))
    if wrong:
        raise ModelError(f"--model {name}: {wrong[0]} in the checkpoint has another shape")
    if absent:
        logger.info("the checkpoint lacks %s: drawn from the seed, and kept with the run",
                    ", ".join(absent))  # fmt: skip


def head_modules(module: Any) -> tuple[str, ...]:
    """Names of the head's modules.

    Raises:
        ModelError: a classifier whose head has another name.
    """
    found = tuple(name for name, _ in module.named_children() if name in HEADS)
    if not found:
        raise ModelError(
            f"{type(module).__name__} has no head named {' or '.join(HEADS)}; choose "
            "another backbone"
        )
    return found


def inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a dotted name is one of the modules or lies in one."""
    return any(name == m or name.startswith(m + ".") for m in modules)


def match_targets(module: Any, head: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Names of the layers to adapt, in the model's order, by PEFT's rules; never in the head.

    Args:
        wanted: endings of names, or all-linear; None: PEFT's AdaLoRA targets for the backbone,
            all linear layers where it has none.
    Raises:
        ModelError: nothing matches, or something that is no linear layer.
    """
    kind = module.config.model_type
    if wanted is None:
        wanted = TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING.get(kind)
        if wanted is None:
            logger.info("PEFT knows no AdaLoRA targets for %s: adapting all linear layers", kind)
            wanted = ("all-linear",)
    if isinstance(wanted, str):
        wanted = (wanted,)
    linear = {n: m for n, m in module.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    if list(wanted) == ["all-linear"]:
        names = list(linear)
    else:
        config = AdaLoraConfig(target_modules=list(wanted), total_step=1)
        names = [
            n for n, _ in module.named_modules() if n and check_target_module_exists(config, n)
        ]
    names = [n for n in names if not inside(n, head)]
    other = [n for n in names if n not in linear]
    flag = f"--target-modules {','.join(wanted)}"
    if other:
        raise ModelError(f"{flag}: {other[0]} is no linear layer; name layers that are")
    if not names:
        endings = sorted({n.rpartition(".")[2] for n in linear if not inside(n, head)})
        raise ModelError(f"{flag}: no layer of {kind} matches; it has {', '.join(endings)}")
    return names


# ---- methods: what of a backbone is trained

LayerMaker = Callable[[nn.Module, int, float, torch.Generator], LowRankLinear]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How a backbone is made trainable."""

    layer: LayerMaker | None
    """Builds an adapted layer; None: the weights themselves are trained."""
    adaptive: bool
    """Whether ranks are allocated, and the orthogonality penalty applies."""


METHODS: dict[str, Method] = {
    "adalora": Method(layer=adalora_linear, adaptive=True),
    "lora": Method(layer=lora_linear, adaptive=False),
    "full": Method(layer=None, adaptive=False),
}


def build_network(
    config: RunConfig,
    labels: Labels,
    tokenizer: Any,
    *,
    posterior: bool,
    device: torch.device,
) -> Network:
    """Load, adapt, move and bank a network.

    Args:
        posterior: whether the optimizer samples its weights.
    Raises:
        ModelError: as `load_backbone` and `match_targets` do.
    """
    module, head, missing = load_backbone(config, labels, tokenizer)
    method = METHODS[config.method]
    module.requires_grad_(method.layer is None)
    for name in head:
        module.get_submodule(name).requires_grad_(True)
    drawn = {
        name: tensor.detach().clone()
        for name, tensor in module.state_dict().items()
        if name in missing and not inside(name, head) and method.layer is not None
    }

    adapters: dict[str, LowRankLinear] = {}
    if method.layer is not None:
        generator = torch.Generator().manual_seed(config.seed)
        for name in match_targets(module, head, config.target_modules):
            base = module.get_submodule(name)
            layer = method.layer(base, config.init_rank, config.alpha, generator)
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, layer)
            adapters[name] = layer

    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    module.to(device)
    for parameter in module.parameters():  # and no buffer: rotary angles want fp32
        parameter.data = parameter.data.to(dtype)
    for name in head:
        # logits are worth fp32: a bf16 regression output has three digits
        part = module.get_submodule(name).float()
        part.register_forward_pre_hook(_inputs_to_float)
    if config.gradient_checkpointing:
        # transformers 5.23 renamed the method; older ones know the old name alone
        renamed = getattr(module, "activation_checkpointing_enable", None)
        try:
            (renamed or module.gradient_checkpointing_enable)({"use_reentrant": False})
        except ValueError as error:
            kind = type(module).__name__
            raise ModelError(f"--gradient-checkpointing: {kind} does not support it") from error
    module.config.use_cache = False

    matrices = [Matrix(name=n, a=m.lora_A, b=m.lora_B, e=m.lora_E) for n, m in adapters.items()]
    low_rank = {id(p) for m in matrices for p in (m.a, m.b, m.e)}
    others = [
        (name, "head" if inside(name, head) else "full", parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in low_rank
    ]
    bank = AdapterBank(matrices, others, posterior=posterior, device=device, compute_dtype=dtype)
    return Network(
        module=module, labels=labels, bank=bank, adapters=adapters, head=head, drawn=drawn
    )


def _inputs_to_float(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs
    )
