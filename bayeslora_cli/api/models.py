"""`evaluate`: a pretrained model without any run, on a task of multiple choice or rows of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bayeslora_cli.evaluation.evaluation import Evaluation


def evaluate(
    model: str | Path,
    *,
    task: str | None = None,
    choices: str | None = None,
    shots: int = 0,
    split: str | None = None,
    data: str | None = None,
    file: str | Path | None = None,
    precision: str = "fp32",
    ood: str | None = None,
    reliability: bool = False,
    predictions: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate a pretrained causal language model that no run has trained.

        found = bl.evaluate("HuggingFaceTB/SmolLM2-135M", task="mmlu", shots=5)

    Args:
        model: hub name, directory, GGUF file or package, as for `train`.
        task: a task of multiple choice, such as mmlu or arc-easy; None: the rows of `file`.
        choices: what of it is scored: letters, or answers; None: as the task has it.
        shots: number of its solved examples in front of each question.
        split: None: test, or validation if its test rows have no answers.
        data: directory of the task's data; None: the hub.
        file: your own rows instead of a task's, in one of the forms that `train` takes.
        precision: fp32, tf32 or bf16.
        ood: out-of-distribution rows, whose uncertainty is compared with the split's: a file.
        reliability: count the bins of a reliability diagram, in `facts["reliability"]`.
        predictions: write one row per example to FILE.csv, .tsv or .jsonl.
        device: cpu, cuda, cuda:N or auto.
        batch_size: sequences per forward pass; None: 64.
        trust_remote_code: run Python code that comes with the model.
    Raises:
        UserError: there is no such model or task, options have no effect, or data is missing.
    """
    from bayeslora_cli.evaluation.run_evaluation import evaluate_model

    return evaluate_model(
        str(model),
        task=task,
        choices=choices,
        shots=shots,
        split=split,
        data=data,
        file=None if file is None else str(file),
        precision=precision,
        ood=ood,
        reliability=reliability,
        predictions=predictions,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )
