"""Checks an export: compares the logits of the reopened files with the run's own."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.data.batching import evaluation_order
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.errors import BayesloraError, NonFiniteError
from bayeslora_cli.export.findings import BaseChange, Check, QuantizationLoss, RoundingLoss
from bayeslora_cli.export.formats.bf16_rounding import Rounding
from bayeslora_cli.export.independent_reader import Logits
from bayeslora_cli.methods.blora.gates import BASE
from bayeslora_cli.methods.network import Network
from bayeslora_cli.models.base_weights.quantized_linear import (
    quantize_only_weights,
    quantizing_rows,
)
from bayeslora_cli.tasks.objectives.objective import Objective

Batch = dict[str, Tensor]
RANDOM_LENGTH = 64  # largest number of tokens of a random row
ROUNDINGS = 8
"""Most that two right computations differ by, in changes that `rounding_of` measures."""
MOST_ROUNDING = 1e-3
"""Larger differences are never taken for rounding; relative to the largest logit if above 1."""
TOKEN_ROW, LAST_TOKENS = 64, 8
"""Of a language model, the largest number of tokens of a row that is compared, and the number of
its last tokens whose logits are: a vocabulary has a hundred thousand words."""
_GROUPS = {"x": "activations", "a": "activations", "h": "activations", BASE: "base weights"}


def beginnings(split: TokenisedSplit, objective: Objective) -> TokenisedSplit:
    """Return a split whose rows are cut to `TOKEN_ROW` tokens, if its tokens are predicted; of
    examples of several sequences, each as a row of its own if the model reads them so."""
    if objective.sequences == 1 and split.parts is not None:
        return replace(split, parts=None, whole=None)
    if split.counted is None:
        return split

    def cut(values: Tensor) -> Tensor:
        return torch.cat([row[:TOKEN_ROW] for row in torch.split(values, split.lengths.tolist())])

    lengths = split.lengths.clamp(max=TOKEN_ROW)
    return TokenisedSplit(
        tokens=cut(split.tokens),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        token_types=None if split.token_types is None else cut(split.token_types),
        labels=None,
        pad_id=split.pad_id,
        pad_type_id=split.pad_type_id,
    )


def batches_of(split: TokenisedSplit) -> list[Batch]:
    """Cut a split into about three batches, of different shapes if its rows differ in length."""
    return [
        {k: v for k, v in split.batch(indices).items() if k not in ("labels", "missing")}
        for indices in evaluation_order(split, max(1, len(split) // 3))
    ]


def compared(logits: Tensor, batch: Batch) -> Tensor:
    """Return the logits that are compared: all (b, outputs), or (n, vocabulary) of last tokens.

    Args:
        logits: (b, outputs), or (b, w, vocabulary) of a language model.
        batch: with `attention_mask` (b, w), padded on the right.
    """
    if logits.ndim == 2:
        return logits
    mask = batch["attention_mask"]
    behind = mask.flip(1).cumsum(1).flip(1)  # tokens from here to the row's end
    return logits[(mask.bool() & (behind <= LAST_TOKENS)).to(logits.device)]


def own_batches(tokenizer: Any, split: TokenisedSplit) -> list[Batch]:
    """Cut a split as `batches_of` does, and let a tokenizer pad each batch on its own.

    Args:
        tokenizer: the tokenizer in the export's files.
    """
    if split.parts is not None:  # tokenizers pad rows of one sequence
        return batches_of(split)
    values = {"input_ids": split.tokens, "token_type_ids": split.token_types}
    lengths = split.lengths.tolist()
    rows = {k: torch.split(v, lengths) for k, v in values.items() if v is not None}
    return [
        dict(
            tokenizer.pad(
                {name: [found[i].tolist() for i in indices] for name, found in rows.items()},
                return_tensors="pt",
            )
        )
        for indices in evaluation_order(split, max(1, len(split) // 3))
    ]


def random_rows(
    tokenizer: Any, rows: int, max_length: int, seed: int = 0, *, parts: int = 1
) -> TokenisedSplit:
    """Make rows of random length with random words, and the special tokens around them.

    Args:
        parts: number of sequences of each row (`Objective.sequences`).

    BART and its relatives pool the end token, and need one in every row.
    """
    rows, examples = rows * parts, rows
    generator = torch.Generator().manual_seed(seed)
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    before, after = (torch.tensor(ids, dtype=torch.int32) for ids in _around(tokenizer))
    longest = min(max_length, RANDOM_LENGTH) - len(before) - len(after)
    if longest < 1:  # no room for the special tokens
        before, after, longest = before[:0], after[:0], max_length
    lengths = torch.randint(min(2, longest), longest + 1, (rows,), generator=generator)
    chosen = torch.randint(len(words), (int(lengths.sum()),), generator=generator)
    texts = torch.split(torch.tensor(words, dtype=torch.int32)[chosen], lengths.tolist())
    tokens = torch.cat([part for text in texts for part in (before, text, after)])
    lengths = lengths + len(before) + len(after)
    typed = "token_type_ids" in tokenizer.model_input_names
    return TokenisedSplit(
        tokens=tokens,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        token_types=torch.zeros(len(tokens), dtype=torch.int8) if typed else None,
        labels=None,
        parts=torch.full((examples,), parts) if parts > 1 else None,
        most_parts=parts,
        pad_id=tokenizer.pad_token_id,
    )


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer puts before and after a text's own."""
    tokenizer = deepcopy(tokenizer)  # a call changes the tokenizer's state, which is saved with it
    whole = tokenizer("a")["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        stop = start + len(plain)
        if plain and whole[start:stop] == plain:
            return whole[:start], whole[stop:]
    return [], []


@torch.inference_mode()
def run_logits(network: Network, batches: Sequence[Batch]) -> list[Tensor]:
    """Compute each batch's logits at the posterior mean; return those to compare, on the CPU.

    Raises:
        NonFiniteError: a logit is not finite.
    """
    device = network.bank.theta.device
    network.module.eval()
    with network.bank.at_mean():
        found = [
            compared(network.model_logits({k: v.to(device) for k, v in batch.items()}), batch).cpu()
            for batch in batches
        ]
    if not all(bool(logits.isfinite().all()) for logits in found):
        raise NonFiniteError("a prediction of the run is not finite: there is nothing to export")
    return found


def rounding_of(network: Network, batches: Sequence[Batch], expected: Sequence[Tensor]) -> float:
    """Measure how far the run's logits are defined in fp32.

    A computation in fp32 gives about the exact result of weights a few roundings away (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, section 1.5). So every second weight is
    moved to a neighbouring number, and back.

    Args:
        expected: `run_logits` of the batches.
    Returns:
        The largest change of a logit.
    """
    trained = {p.data_ptr() for p in network.bank.parameters.values()}
    weights = [p.data for p in network.module.parameters() if p.data_ptr() not in trained]
    _flip_last_bits([*weights, network.bank.mean])
    try:
        found = run_logits(network, batches)
    finally:
        _flip_last_bits([*weights, network.bank.mean])
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def _flip_last_bits(weights: Sequence[Tensor]) -> None:
    """Flip the last bit of every second fp32 number, in place: twice is as before."""
    for weight in weights:
        if weight.dtype == torch.float32 and weight.dim():
            weight.view(torch.int32)[..., ::2].bitwise_xor_(1)


def logits_from(network: Network) -> Logits:
    """Wrap a reloaded network in the interface of `independent_reader`."""
    return lambda batch: run_logits(network, [batch])[0]


def compare(
    expected: Sequence[Tensor], reopened: Logits, batches: Sequence[Batch], *,
    bound: float, inputs: str, rounding: float = 0.0, advice: str = "",
) -> Check:  # fmt: skip
    """Compare the run's logits with those of the reopened export on the same batches.

    Args:
        bound: largest difference of a logit, relative to the largest logit if that is above 1.
        rounding: from `rounding_of`; a difference above the bound may be due to it, unless the
            bound is 0.
        advice: what to do where a difference is larger, for the message.
    Raises:
        BayesloraError: a difference is larger.
    """
    largest = max(float(logits.abs().max()) for logits in expected)
    differences = [
        float((compared(reopened(batch), batch) - logits).abs().max())
        for batch, logits in zip(batches, expected, strict=True)
    ]
    difference = float(torch.tensor(differences).max())  # NaN if any is NaN, unlike max()
    scale = max(1.0, largest)
    allowed = bound * scale
    if bound > 0 and difference > allowed:
        allowed = max(allowed, min(ROUNDINGS * rounding, MOST_ROUNDING * scale))
    check = Check(
        inputs=inputs,
        rows=sum(
            len(batch.get("input_ids", logits))
            for batch, logits in zip(batches, expected, strict=True)
        ),
        max_difference=difference,
        allowed=allowed,
        largest_logit=largest,
    )
    if not check.max_difference <= check.allowed:
        raise BayesloraError(f"the export is wrong, nothing is written: {check}{advice}")
    return check


def drop_unsupported_quantizers(
    network: Network, keeps: frozenset[str], batches: Sequence[Batch]
) -> QuantizationLoss | None:
    """Switch off the quantizers that a format cannot keep, and measure what that changes.

    Args:
        keeps: operands whose quantization the format keeps.
    Returns:
        The change, or None if the format keeps all that the run quantized.
    """
    operands = network.operands
    gone = frozenset() if operands is None else operands.quantized - keeps
    if operands is None or not gone:
        return None
    before = run_logits(network, batches)
    operands.quantized -= gone
    return QuantizationLoss(
        what=sorted({_GROUPS[operand] for operand in gone}),
        **_changes(network.objective, batches, before, run_logits(network, batches)),
    )


def unrounded_rows(network: Network, batches: Sequence[Batch]) -> QuantizationLoss | None:
    """Switch off what quantizes the inputs of frozen weights, and measure what that changes.

    Returns:
        The change, or None if nothing did.
    """
    forms = quantizing_rows(network.module)
    if not forms:
        return None
    before = run_logits(network, batches)
    quantize_only_weights(forms)
    after = run_logits(network, batches)
    changes = _changes(network.objective, batches, before, after)
    return QuantizationLoss(what=["inputs of the frozen weights"], **changes)


def base_change(
    network: Network, base: str, batches: Sequence[Batch], before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> BaseChange:  # fmt: skip
    """Say what other frozen weights change.

    Args:
        base: the precision of those that the run was trained on.
        before, after: `run_logits` of the batches, on those and on the checkpoint's own.
    """
    changes = _changes(network.objective, batches, before, after)
    return BaseChange(base_precision=base, **changes)


def rounding_loss(
    network: Network, rounding: Rounding, batches: Sequence[Batch], before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> RoundingLoss:  # fmt: skip
    """Say what rounded weights change.

    Args:
        before, after: `run_logits` of the batches, with the weights as trained and as rounded.
    """
    changes = _changes(network.objective, batches, before, after)
    return RoundingLoss(update=rounding.update, **changes)


def _changes(
    objective: Objective, batches: Sequence[Batch], before: Sequence[Tensor],
    after: Sequence[Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Compare two sets of logits: the fields that both losses have."""
    pairs = list(zip(before, after, strict=True))
    # without a head, logits are of words
    decides = objective.classes and objective.entry.head
    return {
        "max_difference": max(float((a - b).abs().max()) for a, b in pairs),
        "rows": sum(len(batch["input_ids"]) for batch in batches),
        "changed": sum(_changed(objective, *pair) for pair in pairs) if decides else None,
    }


def _changed(objective: Objective, before: Tensor, after: Tensor) -> int:
    """Count the rows for which two sets of logits (n, outputs) lead to different decisions."""
    decided = [objective.decide(objective.expected(x.double())) for x in (before, after)]
    return int((decided[0] != decided[1]).view(len(before), -1).any(1).sum())
