"""Loads the pretrained backbone, with the head that the task needs, and its tokenizer.

Only the modules of this folder and `export.independent_reader`, which opens exports as their users
do, import `transformers`.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import cached_file, import_utils
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import get_checkpoint_shard_files

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError, explained
from bayeslora_cli.models.backbones.gguf_tokenizer import complete_tokenizer
from bayeslora_cli.models.backbones.input_limits import PADDING_COUNTS, unused_positions
from bayeslora_cli.models.backbones.places import find_backbone, parsed_once
from bayeslora_cli.models.backbones.targets import head_modules, inside
from bayeslora_cli.models.base_weights.streaming import Streaming
from bayeslora_cli.tasks.objectives.objective import Objective

logger = logging.getLogger("bayeslora")
_BOTH_WAYS = ("bert-generation", "xlnet")  # besides those that transformers has for masked words
# raised by transformers for a name or directory that it cannot load; the last two for a GGUF file
# that was cut off
LOADING_ERRORS = (
    OSError, ValueError, KeyError, ImportError, RuntimeError, IndexError, struct.error,
)  # fmt: skip


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """Load the backbone's tokenizer.

    Raises:
        ModelError: it cannot be loaded.
    """
    place = find_backbone(name)
    try:
        with parsed_once(place):
            tokenizer = AutoTokenizer.from_pretrained(
                place.name, trust_remote_code=trust_remote_code, **place.options
            )
            if place.gguf is not None:
                complete_tokenizer(tokenizer, place)
            elif _has_lost_digits(tokenizer, place.name):
                lost = type(tokenizer).__name__
                tokenizer = PreTrainedTokenizerFast.from_pretrained(place.name)
                logger.info(
                    "--model %s: every digit is a token of its own, as its tokenizer.json says; "
                    "transformers' class %s leaves that out", name, lost,
                )  # fmt: skip
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(name, "tokenizer", error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # as `TokenisedSplit.batch` pads; a saved tokenizer keeps this setting
    tokenizer.padding_side = "right"
    return tokenizer


def _has_lost_digits(tokenizer: Any, name: str) -> bool:
    """Return whether a tokenizer lacks the rule of its file that every digit stands alone.

    transformers 5.24 opens the tokenizer of SmolLM2 and others by a class that makes its own rules.
    """
    if not tokenizer.is_fast or "Digits" in str(tokenizer.backend_tokenizer.pre_tokenizer):
        return False
    try:
        raw = Path(str(cached_file(name, "tokenizer.json"))).read_bytes()
    except OSError:  # there is none
        return False
    # parsing all words takes a second, and few files have the rule
    return b'"Digits"' in raw and '"Digits"' in json.dumps(json.loads(raw).get("pre_tokenizer"))


def _cannot_load(name: str, what: str, error: Exception) -> str:
    if (found := explained(error)) is not None:  # it is the machine's fault, not the model's
        raise found from error
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    first = first.rstrip().removesuffix(" from one of:")  # transformers lists what it has tried
    mend = "give a directory that holds one, or a hub name that can be reached"
    if "trust_remote_code" in str(error):
        mend = "--trust-remote-code runs it, if you trust its author"
    return f"--model {name}: cannot load the {what}: {first} ({mend})"


def usable_length(name: str, tokenizer: Any, *, trust_remote_code: bool = False) -> int | None:
    """Return the longest input in tokens that the backbone has positions for; None: unknown.

    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    config = load_configuration(name, trust_remote_code=trust_remote_code)
    limits = [n for n in (tokenizer.model_max_length,) if n < 10**6]
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - unused_positions(config))
    return min(limits) if limits else None


def warn_of_padding(name: str, *, trust_remote_code: bool = False) -> None:
    """Warn of a backbone whose predictions depend on how far its batches are padded.

    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    kind = load_configuration(name, trust_remote_code=trust_remote_code).model_type
    if kind in PADDING_COUNTS:
        logger.warning(
            "--model %s: %s does not hide padding, so a row's prediction depends on the "
            "longest row of its batch, on --eval-batch-size and on the order of the rows",
            name, kind,
        )  # fmt: skip


def check_architecture(
    name: str, auto_class: str, *, trust_remote_code: bool = False, instead: str = ""
) -> None:
    """Check that a backbone can be loaded for the prediction of its next tokens.

    Args:
        auto_class: the class of transformers that loads it; others than that of causal models are
            not checked.
        instead: a kind of task that others learn from the same rows, for the message.
    Raises:
        ModelError: it is no causal model, or its configuration cannot be loaded.
    """
    if auto_class != "AutoModelForCausalLM":
        return
    found = load_configuration(name, trust_remote_code=trust_remote_code)
    kind = found.model_type
    if auto_class in (getattr(found, "auto_map", None) or {}):  # code that comes with the model
        return
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"--model {name}: {kind} does not predict next tokens; choose a causal language model"
        )
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in _BOTH_WAYS
    if masked and not found.is_encoder_decoder and not getattr(found, "is_decoder", False):
        other = f", or --task-type {instead}, which such models learn" if instead else ""
        raise ModelError(
            f"--model {name}: {kind} reads rows in both directions, so it would see the tokens "
            f"that it is to predict; choose a causal language model{other}"
        )


def load_configuration(name: str, *, trust_remote_code: bool = False, **changes: Any) -> Any:
    """Load the configuration of transformers, with `changes` of its values.

    Raises:
        ModelError: it cannot be loaded.
    """
    place = find_backbone(name)
    try:
        with parsed_once(place):
            return AutoConfig.from_pretrained(
                place.name, trust_remote_code=trust_remote_code, **place.options, **changes
            )
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(name, "configuration", error)) from error


def load_backbone(
    config: RunConfig,
    objective: Objective,
    tokenizer: Any,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    streaming: Streaming | None = None,
    real_buffers: bool = False,
) -> tuple[Any, tuple[str, ...], set[str]]:
    """Load a pretrained backbone, with the head that the kind of task needs.

    A backbone without a head is read tensor by tensor in `dtype`, straight to `device`. One with a
    head is read in fp32 on the CPU: its head is drawn there, the same for every device.

    Tensors that the checkpoint lacks are drawn from torch's generator, seeded with the run's seed.

    Args:
        device: None: the CPU; meta: only the shapes are read.
        streaming: quantizes weights as they are read, if the checkpoint's files allow that.
        real_buffers: whether buffers are computed all the same, on the CPU.
    Returns:
        The module, the names of its head's modules, and the names of tensors that its checkpoint
        lacked.
    Raises:
        ModelError: the model cannot be loaded, does not support this kind of task, or its
            checkpoint belongs to another model.
    """
    trusted = config.trust_remote_code
    check_architecture(config.model, objective.entry.auto_class, trust_remote_code=trusted)
    # `_check_checkpoint` reports missing tensors in fewer words
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(config.seed)
    place, trust = find_backbone(config.model), {"trust_remote_code": config.trust_remote_code}
    options: dict[str, Any] = {"dtype": torch.float32 if objective.entry.head else dtype}
    if not objective.entry.head and device is not None and device.type != "cpu":
        options["device_map"] = {"": device}
    if streaming is not None and place.gguf is None:
        options["quantization_config"] = streaming
    auto_class = getattr(transformers, objective.entry.auto_class)
    module: Any
    loading: dict[str, Any] = {"missing_keys": ()}
    try:
        with parsed_once(place):
            architecture = AutoConfig.from_pretrained(
                place.name, **place.options, **objective.model_options(), **trust
            )
            if config.dropout is not None:
                _set_dropout(architecture, config.dropout)
            if streaming is not None:
                _refuse_quantized(config, architecture)
            if device is None or device.type != "meta":
                module, loading = auto_class.from_pretrained(
                    config=architecture, output_loading_info=True, ignore_mismatched_sizes=True,
                    **place.arguments, **options, **trust,
                )  # fmt: skip
            else:
                architecture.dtype = torch.float32
                with init_empty_weights(False) if real_buffers else torch.device("meta"):
                    module = auto_class.from_config(architecture, **trust)
                module.tie_weights()
    except LOADING_ERRORS as error:
        raise ModelError(_cannot_load(config.model, "model", error)) from error
    finally:
        if streaming is not None:
            streaming.finish()
    # a decoder's classifier finds the last token before the padding by this id
    module.config.pad_token_id = tokenizer.pad_token_id
    head = head_modules(module) if objective.entry.head else ()
    missing = set(loading["missing_keys"])
    mismatched = {entry[0] for entry in loading.get("mismatched_keys", ())}
    _check_checkpoint(config.model, module, missing, mismatched, head)
    return module, head, missing


def _refuse_quantized(config: RunConfig, architecture: Any) -> None:
    """Refuse to quantize a checkpoint whose weights are codes already."""
    found = getattr(architecture, "quantization_config", None)
    if found is not None:
        kind = found.get("quant_method") if isinstance(found, dict) else found.quant_method
        raise ModelError(
            f"--base-precision {config.base_precision}: --model {config.model} is quantized "
            f"already ({kind}); name the checkpoint that it was made from"
        )


def weight_files(name: str) -> list[str]:
    """Return the safetensors files of a model's weights; []: they are in files of other kinds."""
    place = find_backbone(name)
    if place.gguf is not None:
        return []
    quietly = {"_raise_exceptions_for_missing_entries": False}
    whole = cached_file(place.name, "model.safetensors", **quietly)
    if whole is not None:
        return [whole]
    index = cached_file(place.name, "model.safetensors.index.json", **quietly)
    return [] if index is None else list(get_checkpoint_shard_files(place.name, index)[0])


def _set_dropout(architecture: Any, probability: float) -> None:
    """Set every dropout probability of a configuration: numbers whose names contain "drop"."""
    for name, value in architecture.to_dict().items():
        if "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(architecture, name, probability)


def _check_checkpoint(
    name: str, module: Any, missing: set[str], mismatched: set[str], head: Sequence[str]
) -> None:
    """Refuse a checkpoint that lacks the backbone's weights: random ones would be trained."""
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


@contextmanager
def unread(device: torch.device) -> Iterator[None]:
    """Stop transformers, inside the block, from reading from a GPU whether a batch has padding.

    transformers leaves out the mask of a batch without padding. The warm-up of a capture would then
    run other kernels than the capture, and compiled blocks would be compiled again inside the
    capture, which fails.
    """
    if device.type != "cuda":
        yield
        return
    original = import_utils.is_cuda_stream_capturing
    import_utils.is_cuda_stream_capturing = lambda: True
    try:
        yield
    finally:
        import_utils.is_cuda_stream_capturing = original
