"""`Question`: a question with its choices; how it becomes a prompt, with or without examples.

A row of a task of multiple choice is one text, the prompt, and several continuations, one for each
choice. The prompts are those of EleutherAI's lm-evaluation-harness, so that numbers can be
compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import RAW, Turn, to_text
from bayeslora_cli.tasks.task import Examples

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
BETWEEN = "\n\n"  # two examples of a prompt


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question with its choices."""

    text: str
    """The question; for WinoGrande a sentence with _ in place of the choice."""
    choices: tuple[str, ...]
    """The choices, two or more."""
    answer: int | None
    """Index of the right choice; None: it is not known."""
    group: str = ""
    """What it belongs to, the widest first, such as stem/astronomy; "": nothing."""
    passage: str = ""
    """A text that the question is about; "": there is none."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """One choice as it continues the prompt."""

    text: str
    """What is scored, its leading space included."""
    given: str = ""
    """What stands between the prompt and `text`, and is not scored."""

    @property
    def size(self) -> int:
        """Bytes of `text` without its leading space, by which a log-likelihood is normalised."""
        return len(self.text.removeprefix(" ").encode("utf-8", "surrogatepass"))


Prompt = Callable[[Question], tuple[str, tuple[Continuation, ...]]]
"""Makes the prompt of a question, and the continuation of each choice."""


def choices_to_text(choices: Sequence[Continuation]) -> str:
    """Write continuations as JSON: a list of strings, or of [given, text] where something is given.

    `Examples.second` of such a task holds this text.
    """
    parts = [c.text if not c.given else [c.given, c.text] for c in choices]
    return json.dumps(parts, ensure_ascii=False)


def choices_from_text(text: str) -> tuple[Continuation, ...]:
    """Read back what `choices_to_text` wrote."""
    return tuple(
        Continuation(part) if isinstance(part, str) else Continuation(part[1], given=part[0])
        for part in json.loads(text)
    )


# ---- prompts


def answers(template: str) -> Prompt:
    """Return the prompt whose continuations are whole answers.

    Args:
        template: the prompt, with {text} for the question.
    """

    def prompt(question: Question) -> tuple[str, tuple[Continuation, ...]]:
        text = template.replace("{text}", question.text)
        beginning = f"{question.passage}\n" if question.passage else ""
        return beginning + text, tuple(Continuation(f" {c}") for c in question.choices)

    return prompt


def letters(template: str) -> Prompt:
    """Return the prompt that lists the choices, and whose continuations are their letters.

    Args:
        template: the prompt up to the choices, with {text} for the question.
    """

    def prompt(question: Question) -> tuple[str, tuple[Continuation, ...]]:
        text = template.replace("{text}", question.text)
        names = LETTERS[: len(question.choices)]
        listed = [f"{name}. {c}" for name, c in zip(names, question.choices, strict=True)]
        lines = [*([question.passage] if question.passage else []), text, *listed, "Answer:"]
        return "\n".join(lines), tuple(Continuation(f" {name}") for name in names)

    return prompt


def filled_blank(question: Question) -> tuple[str, tuple[Continuation, ...]]:
    """Put each choice into the blank; what comes after it is scored.

    Trinh and Le, "A Simple Method for Commonsense Reasoning" (arXiv 1806.02847): partial scoring.
    """
    before, _, after = question.text.partition("_")
    rest = f" {after.strip()}"
    return before, tuple(Continuation(rest, given=choice) for choice in question.choices)


def described(subject: str) -> str:
    """Write the sentence in front of MMLU's questions (Hendrycks et al., ICLR 2021)."""
    words = subject.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {words}.{BETWEEN}"


# ---- rows


def examples_of(
    questions: Sequence[Question],
    prompt: Prompt,
    *,
    shots: Mapping[str, Sequence[Question]] = MappingProxyType({}),
    introduction: Callable[[Question], str] = lambda _: "",
) -> Examples:
    """Make rows of questions.

    Args:
        prompt: makes the prompt and the continuations of one question.
        shots: solved questions to put in front of each question of a group, by `Question.group`.
            A question that is among them is left out before itself.
        introduction: makes what stands in front of everything.
    """
    first, second = [], []
    for question in questions:
        text, choices = prompt(question)
        before = [
            solved(shot, prompt) + BETWEEN
            for shot in shots.get(question.group, ())
            if shot != question
        ]
        whole = introduction(question) + "".join(before) + text
        first.append(to_text((Turn(RAW, whole, False),)))
        second.append(choices_to_text(choices))
    answers = [question.answer for question in questions]
    return Examples(
        first=first,
        second=second,
        labels=None if None in answers else answers,
        groups=[q.group for q in questions] if any(q.group for q in questions) else None,
    )


def solved(question: Question, prompt: Prompt) -> str:
    """Write a question with its answer, as an example in front of others.

    Raises:
        DataError: its answer is not known.
    """
    if question.answer is None:
        raise DataError(f"--shots: the answer to {question.text[:80]!r} is not known")
    text, choices = prompt(question)
    chosen = choices[question.answer]
    return text + chosen.given + chosen.text
