"""All kinds of tasks, by name; a table of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

ENCODE = "bayeslora_cli.data.tokenization:encode"
"""Place of the function that makes tokens of one or two texts per row."""
FORWARD = "bayeslora_cli.models.encoders.logits:logits"
"""Place of the forward pass of a model for sequence classification."""

WHOLE = "transformers"
"""Name on model hubs of the library that opens whole models."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveEntry:
    """A kind of task: a `tasks.objectives.objective.Objective`."""

    implementation: str
    """Place of the class, as module:name."""
    predicts: str
    """What is predicted for a row: a noun with its article, for sentences."""
    auto_class: str = "AutoModelForSequenceClassification"
    """The class of transformers that loads a backbone for it."""
    head: bool = True
    """Whether that class adds a head to the backbone, which is trained as a whole."""
    peft_task: str = "SEQ_CLS"
    """A name in PEFT's `TaskType`."""
    pipeline_tag: str
    """Name of such models on model hubs."""
    library: str = WHOLE
    """Name on model hubs of the library that opens a whole exported model."""
    inputs: tuple[str, ...] = ()
    """Statements of a model card that set `inputs` by `tokenizer`, with {length} for --max-length
    and {tensors} for the kind of tensors; (): the tokenizer gets the task's texts."""
    output: str = "logits"
    """What of the output of its models is compared and printed."""
    reading: tuple[str, ...] = ("print(logits)",)
    """Statements of a model card that print predictions from `logits`, a tensor or an array."""
    encode: str = ENCODE
    """Place of the function that makes tokens of rows, as module:name."""
    forward: str = FORWARD
    """Place of the function (module, inputs) -> outputs that runs a forward pass."""
    packed: bool = False
    """Whether rows go to the backbone without padding, if its architecture keeps them apart."""
    rows: str | None = None
    """Place of its tables' `RowReader`, as module:name; None: they hold texts and a label."""
    columns: tuple[tuple[str, ...], ...] = ()
    """Sets of columns by which a user's file is known to be of this kind, if it has no labels."""
    instead: str = ""
    """A kind that another architecture learns from the same rows; empty: there is none."""
    preset: str = ""
    """The preset that such files get; empty: custom."""
    settings: tuple[str, ...] = ()
    """Options of `RunConfig` that its `Objective` has as fields; others give a notice there."""
    by_label: bool = False
    """Whether each label keeps its share among rows that are held out to evaluate on."""

    @property
    def generates(self) -> bool:
        """Whether its models continue texts."""
        return self.pipeline_tag == "text-generation"


_OF_TEXTS = (
    ("messages",), ("conversations",), ("conversation",), ("prompt", "completion"),
    ("prompt", "response"), ("instruction", "output"), ("instruction", "response"), ("text",),
)  # fmt: skip
_PLAIN_INPUT = (
    'inputs = tokenizer("…", truncation=True, max_length={length}, return_tensors="{tensors}")'
)

# tried from last to first for the labels of a user's table
OBJECTIVES: dict[str, ObjectiveEntry] = {
    "classification": ObjectiveEntry(
        implementation="bayeslora_cli.tasks.objectives.classification:Classification",
        predicts="a class",
        by_label=True,
        pipeline_tag="text-classification",
        packed=True,
    ),
    "regression": ObjectiveEntry(
        implementation="bayeslora_cli.tasks.objectives.regression:Regression",
        predicts="a score",
        pipeline_tag="text-regression",
        packed=True,
    ),
    "multi-label": ObjectiveEntry(
        implementation="bayeslora_cli.tasks.objectives.multi_label:MultiLabel",
        predicts="any number of classes",
        reading=("print(logits > 0)  # the classes whose probabilities are above 1/2",),
        pipeline_tag="text-classification",
        packed=True,
    ),
    "token-classification": ObjectiveEntry(
        implementation="bayeslora_cli.tasks.objectives.tagging:Tagging",
        predicts="a tag for each word",
        auto_class="AutoModelForTokenClassification",
        peft_task="TOKEN_CLS",
        pipeline_tag="token-classification",
        rows="bayeslora_cli.tasks.sources.rows.tags:TAGS",
        columns=tuple(product(("tokens", "words"), ("ner_tags", "tags", "labels", "pos_tags"))),
        encode="bayeslora_cli.data.encodings.words:encode",
        forward="bayeslora_cli.models.encoders.tags:tag_logits",
        packed=True,
        inputs=(_PLAIN_INPUT,),
        reading=("print(logits.argmax(-1))  # a word's tag is that of its first token",),
    ),
    "causal": ObjectiveEntry(
        implementation="bayeslora_cli.tasks.objectives.causal:Causal",
        predicts="the next tokens",
        auto_class="AutoModelForCausalLM",
        head=False,
        peft_task="CAUSAL_LM",
        pipeline_tag="text-generation",
        rows="bayeslora_cli.tasks.sources.rows.dialogues:DIALOGUES",
        columns=_OF_TEXTS,
        preset="causal",
        encode="bayeslora_cli.data.encodings.dialogues:encode",
        forward="bayeslora_cli.models.decoders.scores:log_likelihoods",
        packed=True,
    ),
}
OBJECTIVES["choice"] = replace(
    OBJECTIVES["causal"],
    implementation="bayeslora_cli.tasks.objectives.choice:Choice",
    predicts="one of the choices of a row",
    rows="bayeslora_cli.tasks.sources.rows.choices:CHOICES",
    columns=(("question", "choices"), ("question", "options"), ("question", "A", "B")),
    preset="multiple-choice",
    instead="multiple-choice",
    encode="bayeslora_cli.data.encodings.choices:encode",
)
OBJECTIVES["multiple-choice"] = ObjectiveEntry(
    implementation="bayeslora_cli.tasks.objectives.choice:MultipleChoice",
    predicts="one of the choices of a row",
    auto_class="AutoModelForMultipleChoice",
    # PEFT has no type of its own for it; one that knows the head's names
    peft_task="SEQ_CLS",
    pipeline_tag="multiple-choice",
    rows="bayeslora_cli.tasks.sources.rows.choices:PLAIN_CHOICES",
    columns=(("sent1", "ending0", "ending1"), ("ctx", "endings")),
    encode="bayeslora_cli.data.encodings.parts:encode_choices",
    forward="bayeslora_cli.models.encoders.choices:choice_logits",
    inputs=(
        'question, choices = "…", ["…", "…"]',
        "inputs = tokenizer(",
        "    [question] * len(choices), choices, truncation=True, max_length={length},",
        '    padding=True, return_tensors="{tensors}",',
        ")",
        "inputs = {{name: value[None] for name, value in inputs.items()}}  # one question",
    ),
    reading=("print(logits.argmax(-1))  # the place of the chosen answer, from 0",),
)
OBJECTIVES["embedding"] = ObjectiveEntry(
    implementation="bayeslora_cli.tasks.objectives.embedding:Embedding",
    predicts="an embedding of each text",
    auto_class="AutoModel",
    head=False,
    peft_task="FEATURE_EXTRACTION",
    pipeline_tag="sentence-similarity",
    library="sentence-transformers",
    rows="bayeslora_cli.tasks.sources.rows.pairs:PAIRS",
    columns=(("anchor", "positive"), ("query", "positive"), ("query", "passage")),
    settings=("temperature", "pooling"),
    encode="bayeslora_cli.data.encodings.parts:encode_pairs",
    forward="bayeslora_cli.models.encoders.embeddings:embeddings",
    inputs=(
        "inputs = tokenizer(",
        '    ["…", "…"], truncation=True, max_length={length}, padding=True,',
        '    return_tensors="{tensors}",',
        ")",
    ),
    output="last_hidden_state",
)
