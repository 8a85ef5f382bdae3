"""Embeddings of texts from pairs that belong together: the others of a batch do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.tasks.calibration import ECE_BINS, brier, ece, surprise
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

TEMPERATURE = 0.05
"""Similarities are divided by it: sentence-transformers' scale of 20."""
CANDIDATES = 100
"""An evaluation looks for each anchor's positive among those of this many neighbouring rows."""
_LIBRARY = "sentence_transformers.models"


class Embedding(Objective):
    """A row is an anchor, its positive and possibly a negative; texts become vectors of length 1.

    The loss is the cross entropy of finding the anchor's positive among all positives and negatives
    of a batch by the cosine of the embeddings (van den Oord et al., arXiv 1807.03748; Henderson et
    al., arXiv 1705.00652). Predictions are probabilities of the positives of the `CANDIDATES` rows
    around (n, candidates), the label the place of the own one among them.
    """

    table_metrics = ("accuracy", "mrr", "recall_at_5")
    table_selecting = "mrr"
    selectable = (*table_metrics, "nll", "ece", "brier")
    problem_type = ""
    has_labels = False
    has_confidence = True
    metric_facts: ClassVar[Mapping[str, Any]] = {
        "ece_bins": ECE_BINS, "temperature_of_similarities": TEMPERATURE, "candidates": CANDIDATES,
    }  # fmt: skip

    @classmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Claim no labels: pairs are recognised by their columns."""
        return False

    @classmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return (): there are no classes."""
        return ()

    def parse(self, column: LabelColumn) -> list[Any]:
        """Return 0 for each row."""
        return [0] * len(column.values)

    def model_options(self) -> dict[str, Any]:
        """Return {}: there is no head to describe."""
        return {}

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return the place of each row among its candidates (n,) int64."""
        return torch.arange(len(labels)) % CANDIDATES

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross entropy of the own positive, in nats.

        Args:
            logits: (b, k, d) embeddings of anchors, positives and, if k is 3, negatives.
        """
        candidates = logits[:, 1:].transpose(0, 1).flatten(0, 1)  # positives, then negatives
        similarities = logits[:, 0] @ candidates.T / TEMPERATURE
        return F.cross_entropy(similarities, torch.arange(len(logits), device=logits.device))

    def width(self, module: Any) -> int:
        """Return twice the length of an embedding."""
        return 2 * int(module.config.hidden_size)

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of anchor and positive, side by side (b, 2 d)."""
        return logits[:, :2].flatten(1)

    def expected(self, logits: Tensor) -> Tensor:
        """Return the probability of each candidate; 0 for those that a short last group lacks.

        Args:
            logits: (n, 2 d) what `predict` returned.
        """
        anchors, positives = logits.chunk(2, dim=1)
        found = logits.new_zeros(len(logits), min(CANDIDATES, len(logits)))
        for start in range(0, len(logits), CANDIDATES):
            own = slice(start, start + CANDIDATES)
            shares = (anchors[own] @ positives[own].T / TEMPERATURE).softmax(-1)
            found[own, : shares.shape[1]] = shares
        return found

    def entropy(self, expected: Tensor) -> Tensor:
        """Return entropies over the candidates (n,) in nats; 0 log 0 is 0."""
        terms: Tensor = torch.special.entr(expected)
        return terms.sum(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `ece` and `brier`, among the candidates of a row.

        Equal texts in other rows count as wrong ones.
        """
        own = expected.gather(-1, labels[:, None])
        ranks = 1 + (expected > own).sum(-1).double()
        known = {
            "accuracy": float((ranks == 1).double().mean()),
            "mrr": float((1 / ranks).mean()),
            "recall_at_5": float((ranks <= 5).double().mean()),
            "ece": ece(expected, labels),
            "brier": brier(expected, labels),
        }
        nll = float(surprise(expected, labels).mean())
        return {**{n: known[n] for n in (*names, "ece", "brier") if n in known}, "nll": nll}

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return -log of the probability of each own positive (n,)."""
        return surprise(shown, self.truth(labels))

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the anchor, its positive and possibly its negative."""
        assert examples.second is not None
        return [examples.first[row], *json.loads(examples.second[row])]

    def decide(self, expected: Tensor) -> Tensor:
        """Return the place of the likeliest candidate (n,)."""
        return expected.argmax(-1)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return places among the candidates."""
        found: list[Any] = labels.tolist()
        return found

    def write_beside(self, directory: Path, max_length: int) -> None:
        """Write what sentence-transformers reads beside a whole model: mean of states, length 1."""
        modules = [
            {"idx": place, "name": str(place), "path": path, "type": f"{_LIBRARY}.{name}"}
            for place, (path, name) in enumerate(
                (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
            )
        ]
        width = json.loads((directory / "config.json").read_text())["hidden_size"]
        pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
        files = {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
            "1_Pooling/config.json": pooling,
        }
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(json.dumps(content, indent=2) + "\n")
        (directory / "2_Normalize").mkdir(exist_ok=True)
