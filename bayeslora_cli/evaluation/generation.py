"""Continues prompts with a causal language model: a finished run's, or one without any run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.encodings.dialogues import encode
from bayeslora_cli.errors import UserError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.evaluation.request import check_sampling
from bayeslora_cli.evaluation.run_loading import LoadedRun, load_model
from bayeslora_cli.models.backbones.loading import usable_length
from bayeslora_cli.tasks.dialogue import RAW, SYSTEM, USER, Turn, to_text
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.rows.dialogues import prompt_role
from bayeslora_cli.tasks.task import Examples, Task

logger = logging.getLogger("bayeslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How the next token is chosen."""

    max_new_tokens: int = 256
    """Number of tokens after which a text is cut off; fewer where the model has no positions for
    them."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn from their softmax; 0: the likeliest is taken."""
    seed: int = 0
    """Seed of the drawn tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What a model says after one prompt."""

    prompt: str
    texts: tuple[str, ...]
    """One text at the mean, or one for each sample of the posterior."""
    finished: tuple[bool, ...]
    """Whether each text ended by itself."""


def _generating() -> str:
    """Return the name of a kind of task whose models continue texts."""
    return next(name for name, entry in OBJECTIVES.items() if entry.generates)


def check_run(config: RunConfig, task: Task, sampling: Sampling | None) -> None:
    """Check that a run can continue prompts, before it is loaded.

    Raises:
        UserError: it predicts no tokens, or has no posterior to sample.
    """
    entry = OBJECTIVES[task.objective]
    if not entry.generates:
        raise UserError(
            f"generate: the run on {task.name} predicts {entry.predicts}, not text; see "
            "bayeslora eval --predictions"
        )
    check_sampling(config, sampling)


def generate_from_run(
    loaded: LoadedRun, config: RunConfig, task: Task, prompts: Sequence[str], decoding: Decoding,
    sampling: Sampling | None = None, *, chat: bool | None = None, system: str | None = None,
) -> list[Generation]:  # fmt: skip
    """Continue prompts at the posterior's mean, or once for each sample of the posterior.

    Args:
        sampling: how to sample the posterior; None: only the mean.
        chat: whether prompts are turns of a chat; None: as the run's rows were.
        system: the chat's system turn; None: none, or the template's own.
    Raises:
        UserError: a prompt is too long, or there is no chat template.
    """
    network, tokenizer = loaded.network, loaded.tokenizer
    role = prompt_role(task.text_columns)
    if chat is not None:
        role = USER if chat else RAW
    rows = _tokens(prompts, tokenizer, role, system)
    room = _room(rows, prompts, config, tokenizer)

    def continued() -> list[tuple[str, bool]]:
        if network.operands is not None:
            network.operands.publish_operands(training=False)
        return _continued(network.module, tokenizer, rows, decoding, room)

    network.module.eval()
    if sampling is None:
        with network.bank.at_mean():
            return _grouped(prompts, [continued()])
    generator, found = torch.Generator().manual_seed(sampling.seed), []
    for _ in range(sampling.samples):
        theta = loaded.posterior.sample(generator, sampling.temperature)
        with network.bank.showing(theta):
            found.append(continued())
    return _grouped(prompts, found)


def generate_from_model(
    config: RunConfig, prompts: Sequence[str], decoding: Decoding,
    *, chat: bool | None = None, system: str | None = None,
) -> list[Generation]:  # fmt: skip
    """Continue prompts with a pretrained model as it is.

    Args:
        config: names the model, the device and the precision.
        chat: whether prompts are turns of a chat; None: if the tokenizer has a chat template.
        system: the chat's system turn; None: none, or the template's own.
    Raises:
        UserError: the model cannot be loaded, or a prompt is too long.
    """
    network, tokenizer = load_model(config, build_objective(_generating(), ()), config.device)
    if chat is None:
        chat = bool(tokenizer.chat_template)
        logger.info(
            "%s: prompts are %s", config.model,
            "turns of a chat; --raw gives them as they are" if chat else "given as they are",
        )  # fmt: skip
    rows = _tokens(prompts, tokenizer, USER if chat else RAW, system)
    room = _room(rows, prompts, config, tokenizer)
    network.module.eval()
    return _grouped(prompts, [_continued(network.module, tokenizer, rows, decoding, room)])


def _tokens(
    prompts: Sequence[str], tokenizer: Any, role: str, system: str | None
) -> list[torch.Tensor]:
    """Return the token ids of each prompt, as training makes them of a row up to its answer."""
    if system is not None and role != USER:
        raise UserError("--system: it is for prompts that are turns of a chat")
    if role == USER and not tokenizer.chat_template:
        raise UserError(
            f"--chat: the tokenizer {tokenizer.name_or_path!r} has no chat template; --raw gives "
            "prompts as they are"
        )
    before = () if system is None else (Turn(SYSTEM, system, False),)
    rows = [
        to_text((*before, Turn(role, prompt, False), *((Turn(RAW, "", False),) if role else ())))
        for prompt in prompts
    ]
    found = encode(Examples(first=rows, second=None, labels=None), tokenizer, 2**31 - 1, ends=False)
    return list(torch.split(found["tokens"].long(), found["offsets"].diff().tolist()))


def _room(
    rows: Sequence[torch.Tensor], prompts: Sequence[str], config: RunConfig, tokenizer: Any
) -> int:
    """Return the largest number of tokens of a prompt with its continuation."""
    limit = usable_length(config.model, tokenizer, trust_remote_code=config.trust_remote_code)
    for row, prompt in zip(rows, prompts, strict=True):
        if limit is not None and len(row) >= limit:
            raise UserError(
                f"--prompt {prompt[:40]!r}: it has {len(row)} tokens, and the model takes {limit} "
                "with those that it adds"
            )
    return 2**31 if limit is None else limit


def _continued(
    module: Any, tokenizer: Any, rows: Sequence[torch.Tensor], decoding: Decoding, room: int
) -> list[tuple[str, bool]]:
    """Let transformers continue each row; return the new text, and whether it ended by itself."""
    device = module.get_input_embeddings().weight.device
    ends, drawn = _ends(module, tokenizer), decoding.temperature > 0
    found = []
    with _seeded(decoding.seed, device), _plain(module), torch.inference_mode():
        for row in rows:
            ids = row.to(device)[None]
            out = module.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(decoding.max_new_tokens, room - len(row)),
                do_sample=drawn,
                temperature=decoding.temperature if drawn else 1.0,
                top_k=0,  # transformers has 50 by default
                use_cache=True,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = out[0, len(row) :].tolist()
            found.append((tokenizer.decode(new, skip_special_tokens=True), new[-1] in ends))
    return found


def _ends(module: Any, tokenizer: Any) -> list[int]:
    """Return the ids of tokens that end a text: the model's and the tokenizer's."""
    given = getattr(module.generation_config, "eos_token_id", None)
    known = given if isinstance(given, list) else [given]
    return sorted({x for x in (*known, tokenizer.eos_token_id) if x is not None})


@contextmanager
def _plain(module: Any) -> Iterator[None]:
    """Put aside, inside the block, the model's own settings, such as a repetition penalty.

    transformers takes from them whatever a call does not set.
    """
    own = module.generation_config
    module.generation_config = type(own)()
    try:
        yield
    finally:
        module.generation_config = own


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the block, from which transformers draws tokens."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _grouped(
    prompts: Sequence[str], found: Sequence[Sequence[tuple[str, bool]]]
) -> list[Generation]:
    return [
        Generation(
            prompt=prompt,
            texts=tuple(text for text, _ in answers),
            finished=tuple(finished for _, finished in answers),
        )
        for prompt, answers in zip(prompts, zip(*found, strict=True), strict=True)
    ]
