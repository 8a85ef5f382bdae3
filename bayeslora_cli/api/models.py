"""`evaluate` and `generate`: what a pretrained causal language model does without any run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayeslora_cli.api.arguments import check_prompts
from bayeslora_cli.config.catalogue import PRECISIONS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError

if TYPE_CHECKING:
    from bayeslora_cli.evaluation.evaluation import Evaluation
    from bayeslora_cli.evaluation.generation import Generation


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
    base_precision: str | None = None,
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
        base_precision: of the weights, bf16, int8, nf4 or fp8; None: as `precision` says.
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
        base_precision=base_precision,
        ood=ood,
        reliability=reliability,
        predictions=predictions,
        device=device,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
    )


def generate(
    model: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    system: str | None = None,
    device: str = "auto",
    precision: str = PRECISIONS[0],
    base_precision: str | None = None,
    trust_remote_code: bool = False,
) -> list[Generation]:
    """Continue prompts, or answer them, with a pretrained causal language model.

        (found,) = bl.generate("HuggingFaceTB/SmolLM2-135M-Instruct", ["Why is the sky blue?"])
        print(found.texts[0])

    `Run.generate` does it with a finished run.

    Args:
        model: hub name, directory, GGUF file or package, as for `train`.
        prompts: what to continue or to answer.
        max_new_tokens: number of tokens after which a text is cut off.
        temperature: divides the logits before a token is drawn from their softmax; 0: the likeliest
            token is taken.
        seed: seed of drawn tokens.
        chat: whether prompts are turns of a chat; None: if the tokenizer has a chat template.
        system: the chat's system turn; None: none, or the template's own.
        device: cpu, cuda, cuda:N or auto.
        precision: fp32, tf32 or bf16.
        base_precision: as for `evaluate`.
        trust_remote_code: run Python code that comes with the model.
    Returns:
        A `Generation` for each prompt: `prompt`, and `texts` and `finished` of one text.
    Raises:
        UserError: the model cannot be loaded, or a prompt is too long.
    """
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision}: choose one of {', '.join(PRECISIONS)}")
    check_prompts(prompts)
    from bayeslora_cli.evaluation.generation import Decoding, generate_from_model

    config = RunConfig(
        model=str(model),
        device=device,
        precision=precision,
        base_precision=base_precision,
        trust_remote_code=trust_remote_code,
    )
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return generate_from_model(config, prompts, decoding, chat=chat, system=system)
