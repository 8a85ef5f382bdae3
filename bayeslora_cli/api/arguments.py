"""Turns arguments of the verbs into what the program works with, and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.sources.tabular import reader_of
from bayeslora_cli.tasks.task import Examples, Task

if TYPE_CHECKING:
    from bayeslora_cli.evaluation.forward_passes import Sampling


def sampling_of(
    samples: int | None, temperature: float | None, seed: int | None
) -> Sampling | None:
    """Return how to sample; None: without samples.

    Raises:
        UserError: a temperature or seed is given without samples, or there are no samples.
    """
    if samples is None:
        for name, value in (("--temperature", temperature), ("--seed", seed)):
            if value is not None:
                raise UserError(f"{name} {value}: it is for samples; give --samples S as well")
        return None
    if samples < 1:
        raise UserError(f"--samples {samples}: must be at least 1")
    from bayeslora_cli.evaluation.forward_passes import Sampling

    return Sampling(samples, 1.0 if temperature is None else temperature, seed or 0)


def rows_of(texts: Sequence[str | tuple[str, str]], task: Task) -> Examples:
    """Turn texts into rows of the task.

    Raises:
        UserError: there is no text, a row has more or fewer texts than the task has columns, or the
            task's rows are of another form.
    """
    reader = reader_of(task.objective)
    if reader is not None and not reader.single_texts:
        raise UserError(
            f"predict: the rows of {task.name} are more than texts; evaluate(file=..., "
            "predictions=...) predicts rows of a file, and generate continues prompts"
        )
    columns = 1 if reader is not None else len(task.text_columns)
    rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if isinstance(texts, str) or not rows or any(len(row) != columns for row in rows):
        form = "a list of texts" if columns == 1 else "a list of pairs of texts"
        has = "" if reader else f": {task.name} has {' and '.join(task.text_columns)}"
        raise UserError(f"predict: give {form}{has}")
    first, *rest = (list(column) for column in zip(*rows, strict=True))
    return Examples(first=first, second=rest[0] if rest else None, labels=None)


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse anything but a list of texts.

    Raises:
        UserError: there is no prompt, or one text stands in place of a list.
    """
    if isinstance(prompts, str) or not prompts:
        raise UserError("generate: give a list of prompts")
