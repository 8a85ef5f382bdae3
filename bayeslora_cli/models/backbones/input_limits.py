"""Checks what a backbone accepts as input: positions, token ids, token types."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.errors import ModelError
from bayeslora_cli.models.kernels import cpu_dropout

# RoBERTa and its relatives number positions from the padding token's index + 1
POSITIONS_FROM_PADDING = (
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke",
    "markuplm", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
FIXED_PADDING = {"mpnet": 1}
"""Padding index of the positions, for backbones whose code has it as a fixed number."""
BACKBONE_CODE = ("transformers.", "transformers_modules.")
"""Where the code of backbones is: transformers' own, and what came with a model."""
PADDING_COUNTS = (
    "canine", "convbert", "fnet", "nystromformer", "t5gemma", "t5gemma2", "yoso",
)  # fmt: skip
"""Backbones that do not hide padding: a row's prediction depends on the width of its batch."""


def unused_positions(config: Any) -> int:
    """Return the number of rows at the start of the position table that no token of a text uses.

    Args:
        config: the backbone's configuration in transformers.
    """
    kind = config.model_type
    if kind not in POSITIONS_FROM_PADDING:
        return 0
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return 0  # ESM's rotary positions are in no table
    padding = FIXED_PADDING.get(kind, config.pad_token_id)
    return 0 if padding is None else padding + 1


def check_ids(
    module: Any, name: str, tokens: Tensor, pad_id: int, token_types: Tensor | None
) -> None:
    """Refuse token ids and token types for which the backbone's embeddings have no row.

    Args:
        name: the model's name, as the user gave it.
        tokens: (t,) ids of the rows that the backbone will see.
        pad_id: the id used for padding.
        token_types: (t,); None: the tokenizer makes none.
    Raises:
        ModelError: an id is too large; the message names it and the number of rows.
    """
    largest = max(pad_id, int(tokens.max()) if len(tokens) else 0)
    rows = _rows(_input_embeddings(module))
    if rows is not None and largest >= rows:
        what = "its padding token" if largest == pad_id else "a token of the rows"
        raise ModelError(
            f"--model {name}: the tokenizer has ids up to {largest} ({what}), the backbone's "
            f"embeddings {rows} rows; take the tokenizer that the backbone was trained with, or "
            "resize the embeddings (resize_token_embeddings) and save the model"
        )
    if token_types is None:
        return
    mend = "leave token_type_ids out of model_input_names in its tokenizer_config.json"
    accepted = inspect.signature(module.forward).parameters.values()
    if not any(p.name == "token_type_ids" or p.kind is p.VAR_KEYWORD for p in accepted):
        raise ModelError(
            f"--model {name}: the tokenizer makes token types, which {type(module).__name__} does "
            f"not take; {mend}"
        )
    most = int(token_types.max()) if len(token_types) else 0
    for place, table in module.named_modules():
        if place.rpartition(".")[2] == "token_type_embeddings":
            rows = _rows(table)
            if rows is not None and most >= rows:
                raise ModelError(
                    f"--model {name}: the tokenizer has token types up to {most}, the backbone's "
                    f"{place} {rows} {'row' if rows == 1 else 'rows'}; {mend}"
                )


FORWARD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""Errors by which the code of a backbone may refuse a batch; `refuse_rows` tells which did."""


def refuse_rows(module: Any, error: Exception) -> None:
    """Say in one message that the backbone's own code refuses a batch, if `error` says this.

    T5 and BART, for instance, want their end token in each row, CANINE at least four tokens.

    Args:
        error: raised while `module` computed the batch; one of `FORWARD_ERRORS`.
    Raises:
        ModelError: the backbone's code raised `error`; not for want of memory.
    """
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    machines = any(word in said for word in ("memory", "CUDA", "NCCL", "gloo"))
    if isinstance(error, RuntimeError) and (capturing or machines):
        return
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__", "")) for frame in frames]
    between = ("torch.", f"{cpu_dropout.__name__}.")  # they call what the backbone asks for
    names = [name for name in names if not f"{name}.".startswith(between)]
    if not names or not names[-1].startswith(BACKBONE_CODE):
        return
    mend = "; its tokenizer has to put its end token behind each text" if "<eos>" in said else ""
    raise ModelError(f"{type(module).__name__} does not take these rows: {said}{mend}") from error


def _input_embeddings(module: Any) -> Any:
    """Return the table in which token ids are looked up; None: transformers knows none."""
    try:
        return module.get_input_embeddings()
    except NotImplementedError:  # CANINE hashes code points
        return None


def _rows(table: Any) -> int | None:
    return table.num_embeddings if isinstance(table, nn.Embedding) else None
