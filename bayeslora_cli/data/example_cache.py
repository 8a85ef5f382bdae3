"""`ExampleCache`: rows and tokens that the runs of one process share."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from bayeslora_cli.config.catalogue import ENCODE, implementation
from bayeslora_cli.config.run_config import OPTIONS, RunConfig
from bayeslora_cli.data.counted_rows import check_counts, with_loss
from bayeslora_cli.data.splits import truncation_notice
from bayeslora_cli.data.token_cache import encode_once
from bayeslora_cli.data.tokenised_split import TokenisedSplit
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.models.backbones.packing import packs_rows
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task, data_checksum

logger = logging.getLogger("bayeslora")

_SOURCE = tuple(name for name, option in OPTIONS.items() if option.source)


class ExampleCache:
    """Keeps the last task's rows and tokens, for runs that differ in seed or method."""

    def __init__(self) -> None:
        self._rows: tuple[Any, tuple[Task, dict[str, Examples]]] | None = None
        self._checksum: str | None = None
        self._tokens: tuple[Any, dict[str, TokenisedSplit]] | None = None

    def examples(self, config: RunConfig) -> tuple[Task, dict[str, Examples]]:
        """Return the task and its rows by split, as `load_examples` reads them.

        Raises:
            UserError: raised by `load_examples`.
        """
        key = tuple(getattr(config, name) for name in _SOURCE)
        if self._rows is None or self._rows[0] != key:
            self._rows = self._tokens = self._checksum = None  # free them before others are read
            self._rows = key, load_examples(config)
        return self._rows[1]

    def checksum(self, config: RunConfig) -> str:
        """Return `data_checksum` of the task's rows, which are hashed once.

        Raises:
            UserError: raised by `load_examples`.
        """
        task, examples = self.examples(config)
        self._checksum = self._checksum or data_checksum(task, examples)
        return self._checksum

    def tokens(
        self, config: RunConfig, task: Task, examples: Mapping[str, Examples], tokenizer: Any
    ) -> dict[str, TokenisedSplit]:
        """Return the tokens of each split.

        Args:
            examples: what the last call of `examples` returned.
        Raises:
            UserError: raised by `tokenise`.
        """
        key = config.model, config.max_length, config.packing
        if self._tokens is None or self._tokens[0] != key:
            objective = objective_of(task)
            packed = packs_rows(config, objective)
            place = objective.entry.encode
            make = None if place == ENCODE else implementation(place)
            found = {
                name: tokenise(
                    objective.training_rows(rows) if name == "train" else rows,
                    tokenizer,
                    config.max_length,
                    objective,
                    encode=partial(encode_once, make=make),
                    packed=packed,
                )
                for name, rows in examples.items()
            }
            for name, split in found.items():
                check_counts(split, examples[name], config.max_length)
            if found["train"].counted is not None:
                found["train"] = with_loss(found["train"], examples["train"], config.max_length)
            self._tokens = key, found
            if notice := truncation_notice(found, config.max_length):
                logger.warning("%s", notice)
        return dict(self._tokens[1])

    def training_rows(
        self, config: RunConfig, task: Task, examples: Mapping[str, Examples], tokenizer: Any
    ) -> int:
        """Return the number of rows to train on: all, or those of which a token counts.

        Raises:
            UserError: raised by `tokens`.
        """
        if objective_of(task).entry.encode == ENCODE:
            return len(examples["train"])
        return len(self.tokens(config, task, examples, tokenizer)["train"])
