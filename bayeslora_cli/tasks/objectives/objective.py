"""Kinds of tasks: what the labels are, the loss on them, and how predictions are scored.

A kind of task is a subclass of `Objective` and an entry of `config.catalogue.OBJECTIVES`. To add
one, write the class in a file of its own and enter it:

    OBJECTIVES["multi_label"] = ObjectiveEntry(
        implementation="my_module:MultiLabel",
        predicts="any number of classes",
        auto_class="AutoModelForSequenceClassification",
        peft_task="SEQ_CLS",
        pipeline_tag="text-classification",
    )

The methods are called in the order in which they stand in the class:

1. reading a table: `claims` (are these labels of this kind?), `classes_of`, `parse`;
2. loading the backbone: `outputs`, `model_options`;
3. training: `label_tensor`, `counts`, `forward`, `loss`;
4. evaluation: `forward`, `predict`, `expected` and `entropy` for each sample of the weights, then
   `metrics`;
5. writing predictions: `decide`, `spell`.

`classification.py` and `regression.py` are two short examples. A task names its kind in
`Task.objective`; `objective_of` makes the object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from bayeslora_cli.config.catalogue import OBJECTIVES, implementation
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.objectives.presentation import Presentation
from bayeslora_cli.tasks.sources.label_column import LabelColumn
from bayeslora_cli.tasks.task import Examples, Task

BESIDE_INPUTS = ("labels", "count", "columns", "weights")
"""Tensors of a batch that the backbone does not get."""


@dataclass(frozen=True, kw_only=True)
class Objective(Presentation, ABC):
    """A kind of task, applied to the classes of one task; `Presentation` says how it is shown."""

    table_metrics: ClassVar[tuple[str, ...]]
    """Metrics of a task that is made from a user's table, by names that `metrics` knows."""
    table_selecting: ClassVar[str]
    """The metric that selects the best evaluation of such a task: the largest value is the best, or
    the smallest if its entry in `config.catalogue.METRICS` says so."""
    selectable: ClassVar[tuple[str, ...]] = ()
    """Metrics that --select may name, besides those of the task: keys of `METRICS`, which `metrics`
    and `training_metrics` return if they are among the names that they get."""
    problem_type: ClassVar[str]
    """Name of the kind in transformers' model configurations."""
    probabilistic: ClassVar[bool] = True
    """Whether predictions are probabilities, which have an entropy. Otherwise they are scores, and
    the uncertainty is the variance of `decide` over samples of the weights."""
    has_labels: ClassVar[bool] = True
    """Whether labels tell what is right; otherwise the rows themselves do, and labels are blank."""
    weighs_classes: ClassVar[bool] = False
    """Whether --class-weights applies: `class_weights` and `loss_weights` say how, and `loss` heeds
    the batch's `weights`."""
    has_confidence: ClassVar[bool] = False
    """Whether a prediction is one answer of several, whose probability is a confidence, or consists
    of such answers, as reliability diagrams need (`answers`)."""
    blank_is_label: ClassVar[bool] = False
    """Whether an empty field in a column of texts is a label: a row of no class."""
    sequences: ClassVar[int] = 1
    """Number of sequences of an example that is made at random, to check an export; 1: its batches
    are (b, w), else (b, sequences, w)."""
    # ---- reading a table

    @classmethod
    @abstractmethod
    def claims(cls, column: LabelColumn) -> bool:
        """Return whether a training table's labels, of which none is missing, are of this kind.

        The kinds are tried one after the other, those registered last first. Kinds should claim
        different columns.
        """

    @classmethod
    def takes(cls, column: LabelColumn) -> bool:
        """Return whether labels can be of this kind, if the user says so by --task-type; by default
        they can if they are text, numbers, or true and false."""
        kinds = column.kinds()
        return len(kinds) == 1 and None not in kinds

    @classmethod
    def doubt(cls, column: LabelColumn) -> str | None:
        """Return a warning about labels that this kind has claimed but might mean another thing."""
        return None

    @classmethod
    def told(cls, column: LabelColumn) -> str:
        """Return a clause on labels of this kind, for the log; "": nothing is said."""
        return ""

    @classmethod
    @abstractmethod
    def classes_of(cls, column: LabelColumn) -> tuple[str, ...]:
        """Return the names of the classes in a training table's labels; () if the kind has none.

        Raises:
            DataError: nothing can be learned from these labels.
        """

    @abstractmethod
    def parse(self, column: LabelColumn) -> list[Any]:
        """Return the labels of a table's rows, in a form that `label_tensor` takes.

        Raises:
            DataError: a label does not belong to this task (`LabelColumn.unexpected`).
        """

    # ---- loading the backbone

    @property
    def outputs(self) -> int:
        """Number of columns that `predict` returns, and of the head's outputs if there is one."""
        return len(self.classes)

    def width(self, module: Any) -> int:
        """Return the number of columns that `predict` returns for this model of transformers."""
        return self.outputs

    def model_options(self) -> dict[str, Any]:
        """Return options for the backbone's configuration in transformers."""
        options: dict[str, Any] = {"num_labels": self.outputs, "problem_type": self.problem_type}
        if self.classes:
            options["id2label"] = dict(enumerate(self.classes))
            options["label2id"] = {name: index for index, name in enumerate(self.classes)}
        return options

    # ---- training

    def training_rows(self, examples: Examples) -> Examples:
        """Return rows as training reads them, one sequence each; by default as evaluation does."""
        return examples

    def metric_of(self, rows: Examples) -> str | None:
        """Return the metric that selects by rows to evaluate on which hold more than the rows that
        a task is made from; None: that of the task does."""
        return None

    @abstractmethod
    def label_tensor(self, labels: Sequence[Any]) -> Tensor:
        """Return the labels of n rows, n >= 0, as one tensor (n, ...) on the CPU."""

    def counts(
        self, labels: Tensor, lengths: Tensor, counted: Tensor | None = None
    ) -> Tensor | None:
        """Return the weight of each row in the mean that `loss` returns, (n,) int64; None: 1 each.

        A loss over the tokens of an answer returns the number of tokens. A step weighs each of its
        micro-batches by the sum of its counts, so that the gradient is the sum over all counted
        items divided by their number. The counts stay on the CPU, so that no step reads from the
        GPU.

        Args:
            labels: (n, ...) as `label_tensor` returns them.
            lengths: (n,) number of tokens of each row.
            counted: (n,) number of tokens of each row that the loss counts; None: `encode` marks
                none.
        """
        return None

    def forward(self, module: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Run a forward pass of the backbone; return what `loss` and `predict` take.

        Args:
            module: the model of transformers, which the entry's `auto_class` has loaded.
            batch: the backbone's inputs, without labels.
        Returns:
            (b, outputs) logits, or what the entry's `forward` returns.
        """
        found: Tensor = implementation(self.entry.forward)(module, batch)
        return found

    def class_weights(self, asked: str, labels: Sequence[Any]) -> tuple[float, ...]:
        """Return each class's weight in the loss; called only if `weighs_classes`.

        Args:
            asked: the value of --class-weights.
            labels: those of the training rows, as `parse` returns them.
        Raises:
            ConfigError: there is no such class.
        """
        raise NotImplementedError

    def loss_weights(self, weights: Tensor, truth: Tensor) -> Tensor:
        """Return the factors in the loss that follow from classes; only if `weighs_classes`.

        Args:
            weights: (classes,) fp32, what `class_weights` returned.
            truth: all training labels (n, ...), or the classes of tokens (t,), `PADDING` where none
                is predicted.
        Returns:
            (n,) or (t,), one for each label, or (n, classes).
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss of a batch, () fp32, without reading a value from the device.

        Args:
            logits: (b, outputs) fp32, what `forward` returned.
            batch: the backbone's inputs, such as `input_ids` and `attention_mask` (b, w), and
                `labels` (b, ...); with --class-weights also `weights` (b, ...).
        """

    # ---- evaluation

    def predict(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what an evaluation keeps of a forward pass, (b, outputs); by default all logits.

        Args:
            logits: (b, ...) fp32, what `forward` returned.
            batch: the backbone's inputs, without labels.
        """
        return logits

    def arranged(self, found: Tensor, cells: Tensor) -> Tensor:
        """Return the outputs of examples that consist of several rows; called only for those.

        Args:
            found: (rows, outputs) what `predict` returned.
            cells: (rows, ...) `TokenisedSplit.cells`: what each row belongs to.
        Returns:
            (examples, ...), which `expected` takes.
        """
        raise NotImplementedError

    @abstractmethod
    def expected(self, logits: Tensor) -> Tensor:
        """Return predictions that can be averaged over samples of the weights.

        Args:
            logits: (n, outputs) float64, what `predict` returned for one sample.
        Returns:
            (n, outputs) probabilities, or (n,) scores.
        """

    def entropy(self, expected: Tensor) -> Tensor:
        """Return the entropy of each prediction (n,), in nats; called only if `probabilistic`."""
        raise NotImplementedError

    @abstractmethod
    def metrics(
        self, names: Sequence[str], expected: Tensor, labels: Tensor, variance: Tensor | None = None
    ) -> dict[str, float]:
        """Return metrics by name, among them `nll` in nats per example.

        Args:
            names: the task's metrics.
            expected: what `expected` returned for n rows, averaged over samples, in float64.
            labels: (n, ...).
            variance: (n,) variance of scores over the samples; None: there is only one sample, or
                the kind is `probabilistic`.
        """

    def training_metrics(
        self, names: Sequence[str], logits: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Return the metrics of one forward pass, which evaluations during training record.

        Args:
            logits: (n, outputs), what `predict` returned.
        """
        return self.metrics(names, self.expected(logits.double()), labels)

    def truth(self, labels: Tensor) -> Tensor:
        """Return the class index of each prediction, where labels hold more than that."""
        return labels

    def answers(self, shown: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities (m, k) of answers and the right ones (m,), of which reliability
        diagrams are drawn; by default each prediction is one; called only if `has_confidence`.

        Args:
            shown: what `shown` returned.
            labels: (n, ...).
        """
        return shown, self.truth(labels)

    # ---- writing predictions

    def predicting(self, rows: Examples) -> Objective:
        """Return the kind that predicts rows without labels; by default this one."""
        return self

    @abstractmethod
    def decide(self, expected: Tensor) -> Tensor:
        """Return predictions (n, ...) in the form of labels, such as the likeliest class index."""

    @abstractmethod
    def spell(self, labels: Tensor) -> list[Any]:
        """Return n labels or decisions as files show them: text, numbers, or lists of texts."""


def build_objective(
    name: str, classes: Sequence[str], settings: Mapping[str, Any] | None = None
) -> Objective:
    """Return the object of the kind of task `name`, for these classes.

    Args:
        settings: values of further fields (`ObjectiveEntry.settings`); others have their defaults.
    Raises:
        UserError: there is no such kind, or it has no such fields.
    """
    if name not in OBJECTIVES:
        raise UserError(
            f"there is no kind of task named {name!r}, only {', '.join(OBJECTIVES)}; import what "
            "enters it into OBJECTIVES first"
        )
    settings = settings or {}
    if unknown := settings.keys() - set(OBJECTIVES[name].settings):
        raise UserError(f"the kind of task {name!r} has no setting {min(unknown)!r}")
    found: type[Objective] = implementation(OBJECTIVES[name].implementation)
    return found(name=name, classes=tuple(classes), **settings)


def objective_of(task: Task) -> Objective:
    """Return the object of a task's kind.

    Raises:
        UserError: raised by `build_objective`.
    """
    return build_objective(task.objective, task.classes, task.settings)
