"""`ChoiceTask`: the eight tasks of multiple choice by name, and how their rows are loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from bayeslora_cli.config.catalogue import ANSWERS
from bayeslora_cli.config.catalogue import LETTERS as BY_LETTER
from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.sources.choice_tasks import alpaca, hub, mmlu
from bayeslora_cli.tasks.sources.choice_tasks.questions import (
    LETTERS,
    Prompt,
    Question,
    answers,
    described,
    examples_of,
    filled_blank,
    letters,
)
from bayeslora_cli.tasks.task import Examples, Task

_QUESTION = "Question: {text}"
_WHOLE, _LETTERED = answers(f"{_QUESTION}\nAnswer:"), letters(_QUESTION)
_METRICS = {ANSWERS: ("accuracy", "accuracy_norm"), BY_LETTER: ("accuracy",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceTask(Task):
    """A task of multiple choice. Each row is a question with its choices."""

    folder: str
    """Its folder in the layout of LLM-Adapters."""
    hub_name: str
    """Its data set on the hub."""
    hub_config: str | None
    """The data set's configuration."""
    hub_row: Callable[[hub.Row], Question]
    """Makes a question of a row of that data set."""
    whole: Prompt = _WHOLE
    """The prompt whose continuations are whole answers."""
    lettered: Prompt = _LETTERED
    """The prompt that lists the choices, and whose continuations are letters."""
    form: str = ANSWERS
    """What is scored unless the user says otherwise: `ANSWERS` or `BY_LETTER`."""
    layout: ModuleType = alpaca
    """The file that reads its folder, by `find_folder` and `read_split`."""
    introduction: Callable[[Question], str] = lambda _: ""
    """Makes what stands in front of a lettered prompt."""
    shots_split: str = "train"
    """The split that solved examples come from."""
    text_columns: tuple[str, ...] = ("question", "choices")
    label_column: str = "answer"
    metrics: tuple[str, ...] = _METRICS[ANSWERS]
    selecting: str = "accuracy"
    test_splits: tuple[str, ...] = ("test",)
    """Splits to evaluate on once; those of these tasks often have labels."""
    objective: str = "choice"

    def scored_as(self, form: str | None) -> ChoiceTask:
        """Return the task with the metrics of a form; None: its own form."""
        form = form or self.form
        return replace(self, form=form, metrics=_METRICS[form])


_ALL = (
    ChoiceTask(
        name="mmlu",
        folder="mmlu",
        hub_name="cais/mmlu",
        hub_config="all",
        hub_row=hub.mmlu,
        classes=LETTERS[:4],
        lettered=letters("{text}"),
        form=BY_LETTER,
        layout=mmlu,
        introduction=lambda question: described(question.group.rpartition("/")[2]),
        shots_split="dev",
    ),
    *(
        ChoiceTask(
            name=folder.lower(),
            folder=folder,
            hub_name="allenai/ai2_arc",
            hub_config=folder,
            hub_row=hub.arc,
            classes=LETTERS[:5],
        )
        for folder in ("ARC-Easy", "ARC-Challenge")
    ),
    ChoiceTask(
        name="openbookqa",
        folder="openbookqa",
        hub_name="allenai/openbookqa",
        hub_config="main",
        hub_row=hub.arc,
        classes=LETTERS[:4],
        whole=answers("{text}"),
    ),
    ChoiceTask(
        name="boolq",
        folder="boolq",
        hub_name="google/boolq",
        hub_config=None,
        hub_row=hub.boolq,
        classes=("no", "yes"),
        whole=answers(f"{_QUESTION}?\nAnswer:"),
        lettered=letters(f"{_QUESTION}?"),
    ),
    ChoiceTask(
        name="winogrande",
        folder="winogrande",
        hub_name="allenai/winogrande",
        hub_config="winogrande_xl",
        hub_row=hub.winogrande,
        classes=LETTERS[:2],
        whole=filled_blank,
        lettered=letters("Fill in the blank: {text}"),
    ),
    ChoiceTask(
        name="piqa",
        folder="piqa",
        hub_name="baber/piqa",
        hub_config=None,
        hub_row=hub.piqa,
        classes=LETTERS[:2],
    ),
    ChoiceTask(
        name="siqa",
        folder="social_i_qa",
        hub_name="lighteval/siqa",
        hub_config=None,
        hub_row=hub.siqa,
        classes=LETTERS[:3],
        whole=answers("Q: {text}\nA:"),
    ),
)
TASKS: dict[str, ChoiceTask] = {task.name: task for task in _ALL}


def choice_task(name: str, form: str | None) -> ChoiceTask:
    """Return a task by name, its choices scored in a form; None: its own.

    Raises:
        UserError: there is no such task or form.
    """
    if name not in TASKS:
        raise UserError(
            f"--task {name}: no task of multiple choice; choose one of {', '.join(TASKS)}"
            f"{nearest(name, TASKS)}"
        )
    if form not in (None, *_METRICS):
        raise UserError(f"--choices {form}: choose one of {', '.join(_METRICS)}")
    return TASKS[name].scored_as(form)


def load_choices(
    task: ChoiceTask,
    data: Path | None,
    splits: Collection[str],
    *,
    shots: int = 0,
) -> dict[str, Examples]:
    """Load splits of a task of multiple choice, those of `splits` that its data has.

    Args:
        task: its form decides the prompts.
        data: a directory in one of the layouts of docs/choices.md; None: the hub or its cache.
        shots: number of solved examples in front of each question, the first of `shots_split`; of
            MMLU's, the first of the same subject.
    Raises:
        UserError: there are no such data, or a file or row is not as expected.
    """
    read = _reader(task, data)
    prompt = task.lettered if task.form == BY_LETTER else task.whole
    solved = _shots(task, read(task.shots_split), shots) if shots else {}
    found = {}
    for split in splits:
        questions = read(split)
        if questions is not None:
            if shots:
                _check_shots(task, questions, solved)
            found[split] = examples_of(
                questions,
                prompt,
                shots=solved,
                introduction=task.introduction if task.form == BY_LETTER else lambda _: "",
            )
    return found


def check_trainable(task: ChoiceTask, data: Path | None, found: Container[str]) -> None:
    """Check that a training split is among the splits that were found.

    Raises:
        UserError: it is not.
    """
    if "train" not in found:
        where = f"--data {data}" if data is not None else task.hub_name
        raise UserError(
            f"--task {task.name}: {where} has no training split of it, so it is only for "
            f"`bayeslora eval RUN --task {task.name}`; train on another task, or on files of your "
            "own (--train-file)"
        )


def load_to_score(
    task: ChoiceTask, data: Path | None, split: str | None, *, shots: int = 0
) -> dict[str, Examples]:
    """Load the rows that a finished model is scored on.

    Args:
        split: None: `test`, or `validation` where the test split has no labels or there is none.
    Raises:
        UserError: raised by `load_choices`, or there is no such split.
    """
    wanted = (split,) if split else ("test", "validation")
    for name in wanted:
        found = load_choices(task, data, (name,), shots=shots)
        if found and (split or found[name].labels is not None):
            return found
    where = f"--data {data}" if data is not None else task.hub_name
    raise DataError(f"--task {task.name}: {where} has no split {' or '.join(wanted)} of it")


def _reader(task: ChoiceTask, data: Path | None) -> Callable[[str], list[Question] | None]:
    """Return a function from a split's name to its questions, None if there is no such split."""
    if data is None:
        tables = hub.load_tables(task.hub_name, task.hub_config)
        return lambda split: hub.read_split(tables, split, task.hub_row, task.hub_name)
    if not data.is_dir():
        raise DataError(f"--data {data}: no such directory")
    saved = hub.find_folder(data, task.name, task.folder)
    if saved is not None:
        tables = hub.load_tables(saved)
        return lambda split: hub.read_split(tables, split, task.hub_row, str(saved))
    folder = task.layout.find_folder(data, task.folder)
    if folder is None:
        raise DataError(
            f"--data {data}: holds no data for task {task.name}; docs/choices.md lists the layouts"
        )
    return lambda split: task.layout.read_split(folder, split)


def _check_shots(task: ChoiceTask, questions: Sequence[Question], solved: Container[str]) -> None:
    """Check that each question's group has solved examples.

    Raises:
        UserError: one has none.
    """
    for question in questions:
        if question.group not in solved:
            raise UserError(
                f"--shots: the split {task.shots_split!r} of {task.name} has no solved examples of "
                f"{question.group}"
            )


def _shots(
    task: ChoiceTask, pool: Sequence[Question] | None, shots: int
) -> Mapping[str, Sequence[Question]]:
    """Return the first examples of each group.

    Raises:
        UserError: there are fewer than asked for.
    """
    found: dict[str, list[Question]] = {}
    for question in pool or ():
        found.setdefault(question.group, []).append(question)
    fewest = min(map(len, found.values()), default=0)
    if fewest < shots:
        raise UserError(
            f"--shots {shots}: the split {task.shots_split!r} of {task.name} has {fewest} solved "
            "examples to put in front of a question"
        )
    return found and {group: rows[:shots] for group, rows in found.items()}
