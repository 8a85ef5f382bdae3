"""`Posterior`: a distribution over a network's parameters, which can be sampled and saved.

A file holds the tensors that `Posterior.tensors` returns and the frozen tensors that the run drew
itself. Its metadata name the posterior's kind; `config.catalogue.POSTERIORS` names its class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bayeslora_cli.config.catalogue import POSTERIORS, implementation
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import BankLayout

FACTOR = ".lora_A"
"""Ending of the parameter that each adapted layer has."""


class Posterior(ABC):
    """A distribution over the parameters theta (N,) of a bank, or a point.

    The only one today is `gaussian.FactorisedGaussian`. To add another (Laplace, SWAG, an ensemble
    of seeds), write a subclass in its own file and an entry in `config.catalogue.POSTERIORS`.
    """

    kind: ClassVar[str]
    """Name of the kind in the file's metadata and in the catalogue."""
    layout: BankLayout
    """Layout of the bank."""
    mean: Tensor
    """(N,): the point that is exported, and evaluated without samples."""
    mask: Tensor
    """Kept triplets (n, r), 0 or 1."""

    def apply(self, bank: AdapterBank) -> None:
        """Copy the mean and the mask to the bank."""
        bank.mean.copy_(self.mean)
        bank.mask.copy_(self.mask)

    @property
    @abstractmethod
    def can_sample(self) -> bool:
        """Whether it is a distribution, not only a point."""

    @abstractmethod
    def sample(self, generator: torch.Generator, temperature: float) -> Tensor:
        """Draw theta (N,) on this posterior's device, with the E of pruned triplets at 0.

        Args:
            generator: on the CPU, so that the draws are the same on every device.
            temperature: factor of the variance; 0 gives the mean.
        """

    @abstractmethod
    def summary(self, config: RunConfig, training_rows: int) -> dict[str, Any] | None:
        """Summarise the posterior after training, for result.json; None: nothing to report.

        Args:
            config: the run's configuration.
            training_rows: number of training examples.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of its file, on the CPU, without pruned triplets."""

    @classmethod
    @abstractmethod
    def check_names(cls, names: set[str], layout: BankLayout) -> bool:
        """Return whether a posterior file of a bank with this layout has tensors of these names."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], layout: BankLayout, device: torch.device
    ) -> Self:
        """Rebuild the posterior from the tensors of its file, on `device`.

        Raises:
            ValueError: a tensor does not fit the layout; the message names it.
        """


class BankedNetwork(Protocol):
    """The part of `methods.network.Network` that saving and loading a posterior needs."""

    bank: AdapterBank
    drawn: dict[str, Tensor]
    """Frozen tensors that the checkpoint lacked and the run drew, by name."""

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace a drawn tensor."""


def save(path: Path, network: BankedNetwork, posterior: Posterior) -> None:
    """Write the posterior's tensors, and as drawn/NAME each frozen tensor that the backbone's
    checkpoint lacks."""
    tensors = posterior.tensors()
    tensors |= {f"drawn/{name}": value.cpu().contiguous() for name, value in network.drawn.items()}
    save_file(tensors, path, metadata={"format": posterior.kind})


def adapted_layers(path: Path) -> list[str]:
    """Return the names of the layers whose factors a posterior file has.

    Returns:
        []: there are none, or the file cannot be read, which `load` reports.
    """
    try:
        with safe_open(path, "pt") as file:
            names = [name.partition("/")[2] for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return []
    return [*dict.fromkeys(n.removesuffix(FACTOR) for n in names if n.endswith(FACTOR))]


def load(path: Path, network: BankedNetwork) -> Posterior:
    """Read a posterior file, and set the network's drawn tensors to those of the file.

    Raises:
        RunDirError: the file is missing, corrupt, of another format, or of another network.
    """
    bank, layout = network.bank, network.bank.layout
    try:
        with safe_open(path, "pt") as file:
            place = POSTERIORS.get((file.metadata() or {}).get("format", ""))
            if place is None:
                raise RunDirError(f"{path} is not a posterior of this version")
            kind: type[Posterior] = implementation(place)
            names = set(file.keys())
            drawn = {f"drawn/{name}": name for name in network.drawn}
            if not kind.check_names(names - drawn.keys(), layout):  # before tensors are read
                raise RunDirError(f"{path} belongs to another model or other target modules")
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise RunDirError(f"{path} is missing: the run has not finished") from error
    except (SafetensorError, OSError) as error:
        raise RunDirError(f"{path} is corrupt: {error}") from error
    own = {name: value for name, value in tensors.items() if name not in drawn}
    try:
        found = kind.from_tensors(own, layout, bank.mean.device)
    except ValueError as error:
        raise RunDirError(f"{path}: {error}") from error
    for name in names & drawn.keys():
        value = tensors[name]
        if value.shape != network.drawn[drawn[name]].shape or not value.is_floating_point():
            raise RunDirError(f"{path}: {name} does not fit this model")
        network.set_drawn(drawn[name], value)
    return found
