"""Runs the pieces of a step: kernel by kernel, or from the second time on as one CUDA graph.

A piece is a function of its inputs, of state in fixed tensors, and of a key that says all else
about it: the same key means the same kernels. The first time a piece simply runs, which is also the
warm-up that a capture wants; the second time it is captured, which runs nothing, and replayed.
Nothing of the run's state is touched by a capture, so a captured run is the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.execution.device import is_out_of_memory

logger = logging.getLogger("bayeslora")

Inputs = Mapping[str, Tensor]
Piece = Callable[[Inputs], None]
Key = tuple[Hashable, Hashable]
"""Of a piece, and the names, shapes and types of its inputs."""


class Runner(Protocol):
    """Runs a piece of the step."""

    def __call__(self, key: Hashable, piece: Piece, inputs: Inputs) -> None:
        """Run `piece(inputs)`; shapes and types of the inputs belong to the key by themselves."""


def run_eagerly(key: Hashable, piece: Piece, inputs: Inputs) -> None:
    """Kernel by kernel."""
    piece(inputs)


class GraphRunner:
    """Replays pieces as CUDA graphs, all on the current stream and from one pool of memory."""

    def __init__(
        self,
        generators: Iterable[torch.Generator],
        *,
        alone: bool = True,
        around_first: Callable[[Key], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Nothing is captured yet.

        Args:
            generators: the device's, besides torch's own, that pieces draw from.
            alone: whether this process may run eagerly while others replay: not where they
                communicate.
            around_first: what surrounds a piece's first time, given its key.
        """
        self.alone = alone
        self.around_first = around_first
        self.generators = list(generators)
        self.failure: str | None = None
        """Why nothing is captured any more."""
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: set[Key] = set()
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]] = {}

    def __call__(self, key: Hashable, piece: Piece, inputs: Inputs) -> None:
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in inputs.items())
        whole = key, shapes
        found = self._graphs.get(whole)
        if found is None and whole in self._seen and self.failure is None:
            found = self._capture(whole, piece, inputs)
        if found is None:
            with nullcontext() if whole in self._seen else self.around_first(whole):
                piece(inputs)
            self._seen.add(whole)
            return
        graph, places = found
        for name, tensor in inputs.items():
            places[name].copy_(tensor, non_blocking=True)
        graph.replay()

    def _capture(
        self, key: Key, piece: Piece, inputs: Inputs
    ) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]] | None:
        """A graph of a piece and the tensors that it reads; None: it cannot be captured."""
        places = {name: tensor.clone() for name, tensor in inputs.items()}
        graph = self._graph()
        try:
            with self._recording(graph):
                piece(places)
        except RuntimeError as error:
            self.failure = str(error).partition("\n")[0]
            short = is_out_of_memory(error)
            if short:
                self._release()
            self._settle()
            if not self.alone:
                if short:
                    raise  # it is explained further up
                raise BayesloraError(
                    f"the step cannot be captured in CUDA graphs on this process ({self.failure}), "
                    "and all have to do the same: use --eager"
                ) from error
            logger.warning("steps are not captured in CUDA graphs, and slower: %s", self.failure)
            return None
        self._graphs[key] = graph, places
        return graph, places

    def _graph(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        return graph

    def _recording(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # other threads may use the device meanwhile: theirs are not our operations
        return torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        )

    def _release(self) -> None:
        """Leave the graphs' memory to the steps that run without them."""
        torch.cuda.synchronize()
        self._graphs.clear()
        torch.cuda.empty_cache()

    def _settle(self) -> None:
        """After a failure torch's generators still believe in the capture: end one that works."""
        torch.cuda.synchronize()
        self._pool = torch.cuda.graph_pool_handle()
        place = torch.zeros((), device="cuda")
        with self._recording(self._graph()):
            place.add_(1)
