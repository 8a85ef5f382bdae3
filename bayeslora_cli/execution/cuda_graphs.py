"""Runs the pieces of a step: kernel by kernel, or from the second time on as one CUDA graph.

A piece is a function of its inputs and of state in fixed tensors; its key decides everything else:
the same key means the same kernels. The first time, a piece runs eagerly, which is also the warm-up
that a capture needs. The second time, it is captured, which computes nothing, and then replayed.
A capture changes no state of the run, so a captured run gives the same bits as an eager one.
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
"""A piece's key, and the names, shapes and types of its inputs."""


class Runner(Protocol):
    """Runs a piece of the step."""

    def __call__(self, key: Hashable, piece: Piece, inputs: Inputs) -> None:
        """Run `piece(inputs)`; a runner adds the inputs' shapes and types to `key` itself."""


def run_eagerly(key: Hashable, piece: Piece, inputs: Inputs) -> None:
    """Run the piece kernel by kernel."""
    piece(inputs)


class GraphRunner:
    """Replays pieces as CUDA graphs, all on the current stream and with one memory pool."""

    def __init__(
        self,
        generators: Iterable[torch.Generator],
        *,
        may_run_eagerly: bool = True,
        around_first: Callable[[Key], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Start without captured graphs.

        Args:
            generators: generators of the device, besides torch's own, that pieces draw from.
            may_run_eagerly: whether the pieces run eagerly if a capture fails. With several
                processes they may not: those that replay would wait for this one.
            around_first: makes, from a piece's key, a context for its first run.
        """
        self.may_run_eagerly = may_run_eagerly
        self.around_first = around_first
        self.generators = list(generators)
        self.failure: str | None = None
        """Why pieces are no longer captured; None: they are captured."""
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
        """Capture a piece; return its graph and the input tensors it reads, or None on failure."""
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
            if not self.may_run_eagerly:
                if short:
                    raise  # `memory_explained` explains it
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
        # other threads may use the device meanwhile: their operations are not captured
        return torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        )

    def _release(self) -> None:
        """Free the graphs' memory, for the steps that run without them."""
        torch.cuda.synchronize()
        self._graphs.clear()
        torch.cuda.empty_cache()

    def _settle(self) -> None:
        """Reset torch's generators after a failed capture, by completing a small capture."""
        torch.cuda.synchronize()
        self._pool = torch.cuda.graph_pool_handle()
        place = torch.zeros((), device="cuda")
        with self._recording(self._graph()):
            place.add_(1)
