"""Backbones that take packed rows: which they are, and how they are told where a row begins."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from bayeslora_cli.config.catalogue import AUTO, OFF, ON
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.models.backbones.loading import load_configuration
from bayeslora_cli.models.decoders.packed_attention import (
    masked_attention,
    needs_no_mask,
    packed_attention,
)
from bayeslora_cli.models.encoders.logits import pool_packed_rows
from bayeslora_cli.models.encoders.mpnet import attend_by_rows
from bayeslora_cli.models.encoders.packed_rows import Rows, present_batch
from bayeslora_cli.models.encoders.row_attention import row_attention
from bayeslora_cli.models.kernels.row_attention.row_attention import is_able
from bayeslora_cli.tasks.objectives.objective import Objective

logger = logging.getLogger("bayeslora")

BY_OFFSETS = frozenset({
    "arcee", "codegen", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "granite",
    "granitemoe", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "olmo",
    "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
})  # fmt: skip
"""Architectures, by transformers' model types, that hand `row_offsets` on to our attention. A test
holds the packed rows of each against separate rows (`tests/models/backbones/test_packing.py`)."""
BY_POSITIONS = frozenset({"gpt_neo", "nemotron", "stablelm"})
"""Architectures whose own attention keeps rows apart if their positions begin anew, by a mask of
all tokens by all tokens; the same test holds them."""
ENCODERS = frozenset({
    "albert", "bert", "camembert", "data2vec-text", "deberta-v2", "distilbert", "electra", "ernie",
    "modernbert", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
    "xmod",
})  # fmt: skip
"""Architectures for sequence classification whose blocks hand `Rows` on to our attention. A test
holds the packed rows of each against padded rows (`tests/models/encoders/test_logits.py`)."""
OWN_ATTENTION = frozenset({"deberta-v2", "mpnet"})
"""Those of them whose attention is not one of transformers' register."""
PADDED_ON_A_GPU = frozenset({"mpnet"})
"""Those whose attention adds a bias of its own, for which a GPU has no kernel."""
PAYS_FROM = 128
"""Width of an encoder from which a CPU takes less time for packed rows. In narrower ones the calls
of operators take the time, of which packed rows have more."""
ATTENTION = "bayeslora_packed"
"""Name of our attention in transformers' registers."""


def takes_packed_rows(model_type: str) -> bool:
    """Return whether a decoder keeps packed rows apart; the rows of others are padded."""
    return model_type in BY_OFFSETS or model_type in BY_POSITIONS


def packs(packing: str, architecture: Any, *, head: bool) -> bool:
    """Return whether a backbone's rows are packed: if it keeps them apart, and is to.

    Args:
        packing: the option's value; auto: models without a head. `pays` decides for a run that
            begins; a run whose configuration says auto was begun with padded rows.
        architecture: transformers' configuration.
        head: whether a head reads the states, or each token's next one is predicted.
    """
    if not head:
        return packing != OFF and takes_packed_rows(architecture.model_type)
    return packing == ON and _encodes_packed_rows(architecture)


def pays(architecture: Any, *, on_cpu: bool) -> bool:
    """Return whether packed rows of an encoder take less time than padded ones.

    As measured with `tests/benchmarks/cpu_step.py` and `gpu_step.py`: less is computed, and rows of
    one length take at most the same time. A GPU that cannot run our attention pads.
    """
    if not on_cpu:
        padded = architecture.model_type in PADDED_ON_A_GPU or not is_able(torch.device("cuda"))
        return not padded and _encodes_packed_rows(architecture)
    wide: bool = architecture.hidden_size >= PAYS_FROM
    return wide and _encodes_packed_rows(architecture)


def _encodes_packed_rows(architecture: Any) -> bool:
    kind = architecture.model_type
    if kind == "deberta-v2":  # its other attention is not ours, its convolution mixes rows
        plain = getattr(architecture, "conv_kernel_size", 0) < 1
        return plain and bool(getattr(architecture, "relative_attention", False))
    return kind in ENCODERS and not getattr(architecture, "is_decoder", False)


def prepare_for_packing(module: Any, *, head: bool = False) -> None:
    """Have a backbone attend by row offsets where a batch has them, if its architecture may."""
    kind = module.config.model_type
    if kind in (ENCODERS - OWN_ATTENTION if head else BY_OFFSETS):
        module.set_attn_implementation(ATTENTION)
    if kind == "mpnet":
        attend_by_rows(module)
    if head:
        ours = module.config._attn_implementation == ATTENTION
        assert ours or kind in OWN_ATTENTION, f"{kind} does not take our attention"
        pool_packed_rows(module)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Rows | None,
    row_offsets: Tensor | None = None,
    longest: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for: (1, h, t, d) -> (1, t, h, d).

    Rows that are padded, not packed, go to transformers' own function with their mask; it knows no
    softcap. Encoders get `Rows` in place of a mask.
    """
    if isinstance(attention_mask, tuple):
        found = row_attention(
            query, key, value, attention_mask,
            scaling=scaling, dropout=dropout, window=sliding_window,
        )  # fmt: skip
        return found, None
    if row_offsets is None and softcap is not None:
        assert attention_mask is not None
        out = masked_attention(query, key, value, attention_mask, scaling, dropout, softcap)
        return out.transpose(1, 2), None
    if row_offsets is None:
        padded: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return padded
    out = packed_attention(
        query, key, value, row_offsets, longest, scaling=scaling, dropout=dropout,
        window=sliding_window, softcap=softcap,
    )  # fmt: skip
    return out, None


def _mask(*args: Any, **options: Any) -> Any:
    """Make the mask of padded rows: bool, (b, 1, t, s); for the packed rows of encoders `Rows`."""
    if (batch := present_batch()) is not None:
        return batch.rows
    if needs_no_mask():
        return None
    return sdpa_mask(*args, **options | {"allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def packs_rows(config: RunConfig, objective: Objective) -> bool:
    """Return whether a run's rows are packed; if the backbone cannot, say that they are padded.

    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    packing, head = config.packing, objective.entry.head
    if not objective.entry.packed and packing == ON:
        logger.info("--packing on: rows are padded: those in which %s is predicted are not packed",
                    objective.entry.predicts)  # fmt: skip
    if not objective.entry.packed or packing == OFF or (head and packing == AUTO):
        return False
    name = config.model
    found = load_configuration(name, trust_remote_code=config.trust_remote_code)
    packed = packs(packing, found, head=head)
    if not packed:
        logger.info(
            "--model %s: the rows of a batch are padded to one length, not packed one after the "
            "other: it is not known that %s keeps packed rows apart", name, found.model_type,
        )  # fmt: skip
    return packed


def packing_that_pays(config: RunConfig, objective: Objective, *, on_cpu: bool) -> str:
    """Return the value of --packing with which a run begins if auto is typed.

    Raises:
        ModelError: the model's configuration cannot be loaded.
    """
    entry = objective.entry
    if not (entry.packed and entry.head):
        return AUTO  # the architecture decides
    found = load_configuration(config.model, trust_remote_code=config.trust_remote_code)
    return ON if pays(found, on_cpu=on_cpu) else AUTO
