"""Embeddings of texts from pairs that belong together: the others of a batch do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeslora_cli.config.catalogue import CLS, MEAN, implementation
from bayeslora_cli.tasks.calibration import ECE_BINS, brier, ece, surprise
from bayeslora_cli.tasks.metrics import spearman
from bayeslora_cli.tasks.objectives.objective import Objective
from bayeslora_cli.tasks.shortest_numbers import shortest_numbers
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples

CANDIDATES = 100
"""An evaluation looks for each anchor's positive among those of this many neighbouring rows."""
SPEARMAN = "spearman"
_LIBRARY = "sentence_transformers.models"


@dataclass(frozen=True, kw_only=True)
class Embedding(Objective):
    """A row is an anchor, its positive and possibly a negative; texts become vectors of length 1.

    The loss is the cross entropy of finding the anchor's positive among all positives and negatives
    of a batch by the cosine of the embeddings (van den Oord et al., arXiv 1807.03748; Henderson et
    al., arXiv 1705.00652).

    Predictions are probabilities of the positives of the `CANDIDATES` rows around, and the cosine
    of the own pair: (n, candidates + 1). Labels are the places of the own positives among the
    candidates (n,); of rows with a score, which tells how similar their texts are, those places and
    the scores (n, 2).
    """

    temperature: float = 0.05
    """Similarities are divided by it: sentence-transformers' scale of 20."""
    pooling: str = MEAN
    """What the states of a text's tokens become, one of `POOLINGS`."""

    table_metrics = ("accuracy", "mrr", "recall_at_5")
    table_selecting = "mrr"
    selectable = (*table_metrics, "nll", "ece", "brier")
    problem_type = ""
    has_labels = False
    has_confidence = True

    @property
    def metric_facts(self) -> Mapping[str, Any]:
        """Facts for `eval --json`."""
        return {
            "ece_bins": ECE_BINS,
            "temperature_of_similarities": self.temperature,
            "candidates": CANDIDATES,
        }

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

    def metric_of(self, rows: Examples) -> str | None:
        """Return Spearman's correlation, if the rows have scores."""
        return SPEARMAN if rows.labels and has_scores(rows.labels) else None

    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return the place of each row among its candidates (n,) int64, or with scores (n, 2)."""
        places = torch.arange(len(labels)) % CANDIDATES
        if not has_scores(labels):
            return places
        return torch.stack((places.double(), torch.tensor(labels, dtype=torch.float64)), 1)

    def truth(self, labels: Tensor) -> Tensor:
        """Return the place of each row among its candidates (n,) int64."""
        return labels if labels.ndim == 1 else labels[:, 0].long()

    def forward(self, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the embedding of each text, (b, k, d)."""
        found: Tensor = implementation(self.entry.forward)(module, batch, self.pooling)
        return found

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean cross entropy of the own positive, in nats.

        Args:
            logits: (b, k, d) embeddings of anchors, positives and, if k is 3, negatives.
        """
        candidates = logits[:, 1:].transpose(0, 1).flatten(0, 1)  # positives, then negatives
        similarities = logits[:, 0] @ candidates.T / self.temperature
        return F.cross_entropy(similarities, torch.arange(len(logits), device=logits.device))

    def width(self, module: Any) -> int:
        """Return twice the length of an embedding."""
        return 2 * int(module.config.hidden_size)

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings of anchor and positive, side by side (b, 2 d)."""
        return logits[:, :2].flatten(1)

    def expected(self, logits: Tensor) -> Tensor:
        """Return the probability of each candidate, 0 for those that a short last group lacks, and
        the cosine of the own pair: (n, candidates + 1).

        Args:
            logits: (n, 2 d) what `predict` returned.
        """
        anchors, positives = logits.chunk(2, dim=1)
        found = logits.new_zeros(len(logits), min(CANDIDATES, len(logits)))
        for start in range(0, len(logits), CANDIDATES):
            own = slice(start, start + CANDIDATES)
            shares = (anchors[own] @ positives[own].T / self.temperature).softmax(-1)
            found[own, : shares.shape[1]] = shares
        return torch.cat((found, (anchors * positives).sum(-1, keepdim=True)), 1)

    def shown(self, expected: Tensor) -> Tensor:
        """Return the probabilities (n, candidates)."""
        return expected[:, :-1]

    def measures(self, expected: Tensor) -> dict[str, Tensor]:
        """Return `similarity`, the cosine of anchor and positive."""
        return {"similarity": expected[:, -1].clamp(-1, 1)}  # above 1 only by rounding

    def entropy(self, expected: Tensor) -> Tensor:
        """Return entropies over the candidates (n,) in nats; 0 log 0 is 0."""
        terms: Tensor = torch.special.entr(self.shown(expected))
        return terms.sum(-1)

    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return the task's metrics, `nll`, `ece` and `brier`, among the candidates of a row.

        Equal texts in other rows count as wrong ones: of candidates with one probability the own
        one has the mean place, and is right only if it is by itself. Of rows with scores, those
        from the middle of the scores on count as pairs, and `spearman` is the correlation of cosine
        and score.
        """
        shares, labels, scores = self.shown(expected), self.truth(labels), _scores(labels)
        if scores is not None:
            pairs = _pairs(scores)
            shares, labels = shares[pairs], labels[pairs]
        own = shares.gather(-1, labels[:, None])
        # of candidates that are as likely as the own one half come first
        ranks = ((shares > own).sum(-1) + (shares >= own).sum(-1) + 1).double() / 2
        known = {
            "accuracy": float((ranks == 1).double().mean()),
            "mrr": float((1 / ranks).mean()),
            "recall_at_5": float((ranks <= 5).double().mean()),
            "ece": ece(shares, labels),
            "brier": brier(shares, labels),
        }
        if scores is not None:
            known[SPEARMAN] = spearman(expected[:, -1], scores)
            names = (*names, SPEARMAN)
        nll = float(surprise(shares, labels).mean())
        return {**{n: known[n] for n in (*names, "ece", "brier") if n in known}, "nll": nll}

    def errors(self, shown: Tensor, labels: Tensor) -> Tensor:
        """Return -log of the probability of each own positive (n,); 0 of rows that are no pairs."""
        found, scores = surprise(shown, self.truth(labels)), _scores(labels)
        return found if scores is None else found * _pairs(scores)

    def readable(self, examples: Examples, row: int, item: int = 0) -> list[str]:
        """Return the anchor, its positive and possibly its negative."""
        assert examples.second is not None
        return [examples.first[row], *json.loads(examples.second[row])]

    def predicting(self, rows: Examples) -> Objective:
        """Return the kind whose predictions are vectors, if each row is one text."""
        if rows.second is not None:
            return self
        return TextEmbedding(name=self.name, classes=(), pooling=self.pooling)

    def decide(self, expected: Tensor) -> Tensor:
        """Return the place of the likeliest candidate (n,).

        Args:
            expected: what `shown` returned.
        """
        return expected.argmax(-1)

    def spell(self, labels: Tensor) -> list[Any]:
        """Return places among the candidates."""
        found: list[Any] = self.truth(labels).tolist()
        return found

    @property
    def reading(self) -> tuple[str, ...]:
        """Statements that print the similarities of texts from the states of their tokens."""
        pooled = (
            'mask = inputs["attention_mask"][..., None]',
            "embeddings = (logits * mask).sum(1) / mask.sum(1)",
        )
        return (
            *(("embeddings = logits[:, 0]",) if self.pooling == CLS else pooled),
            "embeddings = embeddings / (embeddings**2).sum(1)[:, None] ** 0.5",
            "print(embeddings @ embeddings.T)  # the similarities of the texts",
        )

    def write_beside(self, directory: Path, max_length: int) -> None:
        """Write what sentence-transformers reads beside a whole model: pooling, and length 1."""
        modules = [
            {"idx": place, "name": str(place), "path": path, "type": f"{_LIBRARY}.{name}"}
            for place, (path, name) in enumerate(
                (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
            )
        ]
        width = json.loads((directory / "config.json").read_text())["hidden_size"]
        pooling = {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": self.pooling == CLS,
            "pooling_mode_mean_tokens": self.pooling == MEAN,
        }
        files = {
            "modules.json": modules,
            "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
            "1_Pooling/config.json": pooling,
        }
        for name, content in files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(json.dumps(content, indent=2) + "\n")
        (directory / "2_Normalize").mkdir(exist_ok=True)


@dataclass(frozen=True, kw_only=True)
class TextEmbedding(Embedding):
    """A row is a text, as `predict` reads it; its prediction is its embedding, of length 1.

    Over samples of the weights it is the mean of the samples' embeddings, scaled to length 1, and
    the variance is their mean squared distance from that mean.
    """

    probabilistic = False
    column = "embedding"

    def width(self, module: Any) -> int:
        """Return the length of an embedding."""
        return int(module.config.hidden_size)

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the embeddings (b, d) of (b, 1, d)."""
        return logits[:, 0]

    def expected(self, logits: Tensor) -> Tensor:
        """Return the embeddings (n, d)."""
        return logits

    def shown(self, expected: Tensor) -> Tensor:
        """Return embeddings of length 1 (n, d)."""
        return F.normalize(expected, dim=-1)

    def measures(self, expected: Tensor) -> dict[str, Tensor]:
        """Return {}."""
        return {}

    def decide(self, expected: Tensor) -> Tensor:
        """Return the embeddings as they are (n, d)."""
        return expected

    def spell(self, labels: Tensor) -> list[Any]:
        """Return each embedding as a list of numbers."""
        return shortest_numbers(labels)


def has_scores(labels: Sequence[Any]) -> bool:
    """Return whether rows have scores, and not only texts that belong together."""
    return isinstance(next(iter(labels), None), float)


def _scores(labels: Tensor) -> Tensor | None:
    return None if labels.ndim == 1 else labels[:, 1]


def _pairs(scores: Tensor) -> Tensor:
    """Return which rows count as pairs (n,): those from the middle of the scores on."""
    return scores >= (scores.min() + scores.max()) / 2
