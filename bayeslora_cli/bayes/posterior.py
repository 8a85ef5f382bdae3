"""`Posterior`: a distribution over a network's parameters, as a sampler and as a file.

A file holds what `Posterior.tensors` gives and the frozen tensors that the run drew itself. Its
metadata name the kind of the posterior, whose class `config.catalogue.POSTERIORS` names.
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


class Posterior(ABC):
    """A distribution over the parameters theta (N,) of a bank, or a point.

    `gaussian.FactorisedGaussian` is the one there is. To add another (Laplace, SWAG, an ensemble of
    seeds), write a subclass in a file of its own and an entry in `config.catalogue.POSTERIORS`.
    """

    kind: ClassVar[str]
    """In the file's metadata, and its key in the catalogue."""
    layout: BankLayout
    """Of the bank."""
    mean: Tensor
    """(N,): the point at which the network is evaluated without samples, and exported."""
    mask: Tensor
    """Kept triplets (n, r), 0 or 1."""

    def apply(self, bank: AdapterBank) -> None:
        """Make this the bank's mean and mask."""
        bank.mean.copy_(self.mean)
        bank.mask.copy_(self.mask)

    @property
    @abstractmethod
    def can_sample(self) -> bool:
        """Whether it is more than a point."""

    @abstractmethod
    def sample(self, generator: torch.Generator, temperature: float) -> Tensor:
        """Draw theta (N,), on this posterior's device, the E of pruned triplets being 0.

        Args:
            generator: on the CPU: the draws are the same whatever device the posterior is on.
            temperature: a factor of the variance; 0 gives the mean.
        """

    @abstractmethod
    def summary(self, config: RunConfig, training_rows: int) -> dict[str, Any] | None:
        """What training has made of it, for result.json; None: there is nothing to say.

        Args:
            config: of the run.
            training_rows: number of training examples.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What its file holds, without pruned triplets, on the CPU."""

    @classmethod
    @abstractmethod
    def check_names(cls, names: set[str], layout: BankLayout) -> bool:
        """Whether tensors of these names are a posterior's of a bank with this layout."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], layout: BankLayout, device: torch.device
    ) -> Self:
        """The posterior that `tensors` came from, on `device`.

        Raises:
            ValueError: a tensor that does not fit the layout; the message names it.
        """


class BankedNetwork(Protocol):
    """What a posterior file needs of a network: `methods.network.Network` is one."""

    bank: AdapterBank
    drawn: dict[str, Tensor]
    """Frozen tensors that the checkpoint lacked and the run drew, by name."""

    def set_drawn(self, name: str, value: Tensor) -> None:
        """Replace one of them."""


def save(path: Path, network: BankedNetwork, posterior: Posterior) -> None:
    """Write the file: the posterior's tensors, and drawn/NAME, a frozen tensor that the backbone's
    checkpoint lacks."""
    tensors = posterior.tensors()
    tensors |= {f"drawn/{name}": value.cpu().contiguous() for name, value in network.drawn.items()}
    save_file(tensors, path, metadata={"format": posterior.kind})


def load(path: Path, network: BankedNetwork) -> Posterior:
    """Read the file for a network of the same structure; its drawn tensors are set to the file's.

    Raises:
        RunDirError: missing, corrupt, of another format, or of another network.
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
            if not kind.check_names(names - drawn.keys(), layout):  # before any is read
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
