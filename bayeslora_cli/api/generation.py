"""`generate`: continues prompts with a pretrained causal language model, without any run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bayeslora_cli.api.arguments import check_prompts
from bayeslora_cli.config.catalogue import PRECISIONS
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import UserError

if TYPE_CHECKING:
    from bayeslora_cli.evaluation.generation import Generation


def generate(
    prompts: Sequence[str],
    *,
    model: str,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    system: str | None = None,
    device: str = "auto",
    precision: str = PRECISIONS[0],
    trust_remote_code: bool = False,
) -> list[Generation]:
    """Continue prompts, or answer them. `Run.generate` does the same with a finished run.

    Args:
        model: a hub name, a directory, package:NAME/PATH or a GGUF file.
        max_new_tokens: number of tokens after which a text is cut off.
        temperature: divides the logits before a token is drawn from their softmax; 0: the likeliest
            token is taken.
        seed: seed of drawn tokens.
        chat: whether prompts are turns of a chat; None: if the tokenizer has a chat template.
        system: the chat's system turn; None: none, or the template's own.
        device: cpu, cuda, cuda:N or auto.
        precision: fp32, tf32 or bf16.
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
        model=model, device=device, precision=precision, trust_remote_code=trust_remote_code
    )
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    return generate_from_model(config, prompts, decoding, chat=chat, system=system)
