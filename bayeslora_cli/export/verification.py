"""The check of an export: its logits, reopened, against the run's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora_cli.data.batching import evaluation_order
from bayeslora_cli.data.tokenization import TokenisedSplit
from bayeslora_cli.errors import BayesloraError, NonFiniteError
from bayeslora_cli.export.independent_reader import Logits
from bayeslora_cli.methods.network import Network

Batch = dict[str, Tensor]
RANDOM_LENGTH = 64  # tokens of a random row at the most


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How far an export was found from its run."""

    inputs: str
    """The split of the task, the file, or random."""
    rows: int
    max_difference: float
    """Largest |difference| of a logit."""
    allowed: float
    largest_logit: float

    def __str__(self) -> str:
        rows = "random rows" if self.inputs == "random" else f"rows of {self.inputs}"
        return (
            f"logits on {self.rows} {rows}: largest difference from the run "
            f"{self.max_difference:.1e}, allowed {self.allowed:.1e}"
        )


def batches_of(split: TokenisedSplit) -> list[Batch]:
    """The split in a few batches, of unlike shapes where its rows are."""
    return [
        {k: v for k, v in split.batch(indices).items() if k != "labels"}
        for indices in evaluation_order(split, max(1, len(split) // 3))
    ]


def random_rows(tokenizer: Any, rows: int, max_length: int, seed: int = 0) -> TokenisedSplit:
    """Rows of random tokens, no special ones among them, of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    words = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    longest = min(max_length, RANDOM_LENGTH)
    lengths = torch.randint(min(2, longest), longest + 1, (rows,), generator=generator)
    chosen = torch.randint(len(words), (int(lengths.sum()),), generator=generator)
    typed = "token_type_ids" in tokenizer.model_input_names
    return TokenisedSplit(
        tokens=torch.tensor(words, dtype=torch.int32)[chosen],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        token_types=torch.zeros(len(chosen), dtype=torch.int8) if typed else None,
        labels=None,
        pad_id=tokenizer.pad_token_id,
    )


@torch.inference_mode()
def run_logits(network: Network, batches: Sequence[Batch]) -> list[Tensor]:
    """Each batch's logits at the posterior mean, on the CPU.

    Raises:
        NonFiniteError: a logit that is not finite.
    """
    device = network.bank.theta.device
    network.module.eval()
    with network.bank.at_mean():
        found = [
            network.logits({k: v.to(device) for k, v in batch.items()}).cpu() for batch in batches
        ]
    if not all(bool(logits.isfinite().all()) for logits in found):
        raise NonFiniteError("a prediction of the run is not finite: there is nothing to export")
    return found


def logits_from(network: Network) -> Logits:
    """A network that was read back, as `plain` has others' models."""
    return lambda batch: run_logits(network, [batch])[0]


def compare(
    expected: Sequence[Tensor], reopened: Logits, batches: Sequence[Batch], *,
    bound: float, inputs: str,
) -> Check:  # fmt: skip
    """Run the export on the same batches.

    Args:
        bound: of a difference, relative to the largest logit where that is above 1.
    Raises:
        BayesloraError: a difference above the bound.
    """
    largest = max(float(logits.abs().max()) for logits in expected)
    differences = [
        float((reopened(batch) - logits).abs().max())
        for batch, logits in zip(batches, expected, strict=True)
    ]
    check = Check(
        inputs=inputs,
        rows=sum(len(logits) for logits in expected),
        max_difference=float(torch.tensor(differences).max()),  # NaN if one is, unlike max()
        allowed=bound * max(1.0, largest),
        largest_logit=largest,
    )
    if not check.max_difference <= check.allowed:
        raise BayesloraError(f"the export is wrong, nothing is written: {check}")
    return check
