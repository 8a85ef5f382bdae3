"""What the runs of one process share: rows, their tokens, and what the last one was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.token_cache import encode_once
from bayeslora_cli.data.tokenization import TokenisedSplit, tokenise
from bayeslora_cli.tasks.sources.loading import load_examples
from bayeslora_cli.tasks.task import Examples, Task

_SOURCE = ("task", "data", "train_file", "eval_file", "text_columns", "label_column")


class Shared:
    """Keeps the last task's rows and tokens, which runs that differ in seed or method all want."""

    def __init__(self) -> None:
        self._rows: tuple[Any, tuple[Task, dict[str, Examples]]] | None = None
        self._tokens: tuple[Any, dict[str, TokenisedSplit]] | None = None
        self.rig: Any = None
        """A `rig.Rig` that a run has left in good order; None: there is none."""
        self.alike = 1
        """Runs that this process trains with such a rig, the present one included."""

    def examples(self, config: RunConfig) -> tuple[Task, dict[str, Examples]]:
        """As `data.load_examples` has them.

        Raises:
            UserError: as it does.
        """
        key = tuple(getattr(config, name) for name in _SOURCE)
        if self._rows is None or self._rows[0] != key:
            self._rows = self._tokens = None  # not the old ones beside the new
            self._rows = key, load_examples(config)
        return self._rows[1]

    def tokens(
        self, config: RunConfig, task: Task, examples: Mapping[str, Examples], tokenizer: Any
    ) -> dict[str, TokenisedSplit]:
        """The tokens of each split of `examples`, which are the last that were asked for.

        Raises:
            UserError: as `batches.tokenise` does.
        """
        key = config.model, config.max_length
        if self._tokens is None or self._tokens[0] != key:
            found = {
                name: tokenise(
                    rows,
                    tokenizer,
                    config.max_length,
                    regression=task.regression,
                    encode=encode_once,
                )
                for name, rows in examples.items()
            }
            self._tokens = key, found
        return dict(self._tokens[1])
