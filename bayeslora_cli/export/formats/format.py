"""`Format`: how a finished run is written, opened again, and described to its users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.formats.bf16_rounding import Rounding
from bayeslora_cli.export.independent_reader import Logits
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.methods.blora.gates import WEIGHTS
from bayeslora_cli.methods.network import Network
from bayeslora_cli.tasks.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Snippet:
    """Python code of a model card, which opens an export and predicts; fields are lines of code."""

    standard: tuple[str, ...] = ()
    """Imports from the standard library."""
    packages: tuple[str, ...] = ()
    """Imports that `load` needs, without those from transformers."""
    transformers: tuple[str, ...] = ()
    """Names to import from transformers."""
    load: tuple[str, ...]
    """Statements that open the export at `directory`."""
    predict: tuple[str, ...] = (
        "model.eval()",
        "with torch.no_grad():",
        "    logits = model(**inputs).logits",
    )
    """Statements that set `logits` from `inputs`, the tokenizer's output."""
    predict_packages: tuple[str, ...] = ("import torch",)
    """Additional imports that `predict` needs."""
    generate: tuple[str, ...] = (
        "model.eval()",
        "tokens = model.generate(**inputs, max_new_tokens=100)[0]",
        'answer = tokens[inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
    )
    """Statements that continue `inputs` and print the answer, for kinds of tasks whose models do
    that; (): such models predict too."""
    tensors: str = "pt"
    """The tokenizer's `return_tensors`."""
    opens_hub_names: bool = True
    """Whether `directory` may be a name on the hub instead."""


class Format(ABC):
    """An export format; `catalogue.FormatEntry` holds the facts that are known without torch."""

    keeps: ClassVar[frozenset[str]] = frozenset(WEIGHTS)
    """Quantized operands (`methods.blora.gates`) that it keeps, at least as rounded numbers."""

    advice: ClassVar[str] = ""
    """The end of the message where the reopened export predicts otherwise than the run."""

    def check(self, config: RunConfig) -> None:  # noqa: B027  # most formats refuse no run
        """Refuse a run that has nothing to write in this format.

        Raises:
            UserError: the run has nothing to write; the message gives the reason.
        """

    def round(self, network: Network, options: ExportOptions) -> Rounding | None:
        """Round the network's own weights, in place, to the numbers that are written.

        Returns:
            What that does to the adapters; None: the format keeps the weights as trained.
        """
        return None

    @abstractmethod
    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write the files; the caller writes those of the tokenizer.

        Args:
            directory: exists and is empty.
            network: at the posterior mean `bank.mean` with the kept triplets `bank.mask`. It is
                not used again, so its modules may be changed.
        Returns:
            Entries for the manifest, in addition to those of every export.
        """

    @abstractmethod
    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Open what `write` wrote, if possible without this package's model code.

        Args:
            config: the run's configuration, for its base model and --trust-remote-code.
            task: the run's task, for the class that loads its model (`ObjectiveEntry.auto_class`).
            device: the device to compute on, if the format leaves a choice.
        """

    @abstractmethod
    def description(self, options: ExportOptions) -> str:
        """Return a sentence for the model card that tells what the files are."""

    @abstractmethod
    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the export on any machine."""

    def serving(self, config: RunConfig, task: Task, facts: Mapping[str, Any]) -> tuple[str, ...]:
        """Return shell commands that serve the export, to be run in its directory; (): none.

        Args:
            facts: what `write` returned.
        """
        return ()


def kept_factors(
    network: Network, mean: Tensor, mask: Tensor
) -> dict[str, tuple[Tensor, Tensor | None, Tensor]]:
    """Return A (k, in), E (k, 1) or None, and B (out, k) of each adapted matrix's k kept triplets.

    Quantized factors are returned as the rounded numbers.

    Args:
        mean: flat parameters (N,).
        mask: kept triplets (n, r).
    """
    mean = network.effective(mean)
    found = {}
    for index, name in enumerate(network.adapters):
        kept = mask[index].bool()
        part = {p: network.bank.segments.get(f"{name}.lora_{p}") for p in "AEB"}
        a, e, b = (None if s is None else s.view(mean) for s in part.values())
        assert a is not None
        assert b is not None
        found[name] = (a[kept], None if e is None else e[kept], b[:, kept])
    return found
