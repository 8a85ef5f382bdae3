"""Log-likelihoods of choices by this package and by lm-eval 0.4.13, row by row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.evaluation.forward_passes import logits_of
from bayeslora_cli.evaluation.run_loading import load_model
from bayeslora_cli.models.backbones.loading import usable_length
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import ChoiceTask, load_to_score
from bayeslora_cli.tasks.sources.choice_tasks.questions import Question, choices_from_text
from bayeslora_cli.tasks.validation_share import take

# the prompts of lm-eval's own tasks, for rows of one's own
_TEMPLATES = {
    "letters": (
        '"{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\n'
        'D. {{choices[3]}}\\nAnswer:"',
        '["A", "B", "C", "D"]',
    ),
    "answers": ('"Question: {{question}}\\nAnswer:"', '"{{choices}}"'),
}
_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {work}/{name}_test.jsonl
    dev: {work}/{name}_dev.jsonl
test_split: test
fewshot_split: dev
fewshot_config:
  sampler: first_n
output_type: multiple_choice
{description}doc_to_text: {text}
doc_to_choice: {choices}
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_bytes
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one row."""

    place: int
    """In the test split."""
    label: int
    likelihoods: list[float]
    """Of each choice."""
    right: bool
    """Whether the likeliest choice is the right one."""
    right_by_bytes: bool


def drawn(total: int, rows: int | None) -> list[int]:
    """The same rows for both: a fixed draw, in order; None: all."""
    return list(range(total)) if rows is None else sorted(Random(0).sample(range(total), rows))


def our_rows(
    model: str,
    task: ChoiceTask,
    data: Path,
    *,
    shots: int = 0,
    rows: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> list[Row]:
    """Evaluate the test split of a task."""
    (examples,) = load_to_score(task, data, "test", shots=shots).values()
    places = drawn(len(examples), rows)
    examples, objective = take(examples, places), objective_of(task)
    config = RunConfig(
        task=task.name, model=model, method="lora", optimizer="adamw", criterion=None,
        target_rank=1, init_rank=1, precision=precision,
    )  # fmt: skip
    network, tokenizer = load_model(config, objective, device)
    length = usable_length(model, tokenizer) or 2**30
    split = tokenise(examples, tokenizer, length, objective, packed=network.packed)
    batches = Batches(split, config.eval_batch_size, network.bank.theta.device)
    with network.bank.at_mean():
        found = logits_of(network, batches).double()
    result = []
    for place, label, values, choices in zip(
        places, examples.labels or [], found, examples.second or [], strict=True
    ):
        count = len(choices_from_text(choices))
        likelihoods, sizes = values[:count].unbind(-1)
        result.append(
            Row(
                place=place,
                label=label,
                likelihoods=likelihoods.tolist(),
                right=int(likelihoods.argmax()) == label,
                right_by_bytes=int((likelihoods / sizes).argmax()) == label,
            )
        )
    return result


def lm_eval_rows(
    model: str,
    test: list[Question],
    shots_of: list[Question],
    work: Path,
    *,
    form: str,
    shots: int = 0,
    rows: int | None = None,
    device: str = "cpu",
    batch_size: int = 8,
) -> list[Row]:
    """Evaluate the same rows by lm-eval, in fp32.

    Args:
        test: all questions of the test split, in the order in which this package reads them.
        shots_of: questions that shots are the first of, in each group.
        work: an empty directory.
        form: answers or letters.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    groups: dict[str, list[int]] = {}
    for place in drawn(len(test), rows):
        groups.setdefault(test[place].group, []).append(place)
    names = {f"rows_{number}": group for number, group in enumerate(groups)}
    text, choices = _TEMPLATES[form]
    for name, group in names.items():
        own = [(-1, q) for q in shots_of if q.group == group][: max(1, shots)]
        _write(work / f"{name}_dev.jsonl", own)
        _write(work / f"{name}_test.jsonl", [(place, test[place]) for place in groups[group]])
        subject = group.rpartition("/")[2].replace("_", " ")
        said = f"The following are multiple choice questions (with answers) about {subject}."
        description = f'description: "{said}\\n\\n"\n' if group else ""
        (work / f"{name}.yaml").write_text(
            _TASK.format(name=name, work=work, text=text, choices=choices, description=description)
        )
    found = simple_evaluate(
        model=HFLM(pretrained=model, dtype="float32", device=device, batch_size=batch_size),
        tasks=list(names),
        num_fewshot=shots,
        log_samples=True,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(work), include_defaults=False),
    )
    result = [
        Row(
            place=sample["doc"]["place"],
            label=sample["doc"]["answer"],
            likelihoods=[float(answer[0]) for answer in sample["filtered_resps"]],
            right=bool(sample["acc"]),
            right_by_bytes=bool(sample["acc_bytes"]),
        )
        for name in names
        for sample in found["samples"][name]
    ]
    return sorted(result, key=lambda row: row.place)


def _write(path: Path, questions: list[tuple[int, Question]]) -> None:
    path.write_text(
        "".join(
            json.dumps(
                {"place": place, "question": q.text, "choices": q.choices, "answer": q.answer}
            )
            + "\n"
            for place, q in questions
        )
    )
