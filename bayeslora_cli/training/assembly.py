"""Builds what a training step needs (network, optimizer, allocator, data).

The next run of the process reuses it if only the seed changes.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import ON, OPTIMIZERS
from bayeslora_cli.config.effects import kind
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data.example_cache import ExampleCache
from bayeslora_cli.data.splits import Data, check_tokens, tokens_fingerprint
from bayeslora_cli.errors import UserError
from bayeslora_cli.execution.compilation import (
    compile_blocks,
    compiled_once,
    is_worth_compiling,
    start_compilers,
    uncompiled,
)
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.execution.device import pick_device, set_precision
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.models.backbones.identity import checksum, model_identity
from bayeslora_cli.runs.checkpoint import Stateful, transfer
from bayeslora_cli.tasks.objectives.objective import objective_of
from bayeslora_cli.training.preparation import PreparedRun, learning_rate
from bayeslora_cli.training.start.warm_start import begin_from
from bayeslora_cli.training.step import TrainStep

logger = logging.getLogger("bayeslora")


@dataclass(kw_only=True, slots=True)
class Workspace:
    """Objects that one process keeps from run to run."""

    examples: ExampleCache = field(default_factory=ExampleCache)
    setup: TrainingSetup | None = None
    """The setup of the last run, if that run ended well."""
    runs: int = 1
    """Number of runs of this process that can use the same setup, the present one included."""


def reuse_or_build(
    prepared: PreparedRun, workspace: Workspace, processes: Processes = SINGLE
) -> TrainingSetup:
    """Return the previous run's setup, reset to this run's initial state, or build a new one.

    A setup is reused if the two runs differ only in the seed; otherwise it is freed first. It is
    removed from the workspace until the caller puts it back.

    Raises:
        UserError: the data, the model or the device cannot be used; the message tells the remedy.
    """
    kept, workspace.setup = workspace.setup, None
    with processes.all_or_none():
        reset = kept is not None and kept.reset(prepared, processes)
    if not all(processes.gather(reset)):
        kept = None
    # a network is full of reference cycles: free the old one, or the one built for the new draws
    gc.collect()
    if kept is not None:
        logger.debug("the last run's network is used again, from this run's beginning")
        return kept
    return _build(prepared, workspace.runs, processes)


def _build(prepared: PreparedRun, runs: int, processes: Processes) -> TrainingSetup:
    """Build a new setup on the device, its step captured and compiled as the options ask."""
    config = prepared.config
    torch.cuda.empty_cache()  # other processes may be on the same GPU
    with processes.all_or_none():
        device = pick_device(config.device)
        if config.shard and processes.world == 1:
            raise UserError(
                "--shard: weights are divided among processes, and there is only one: start "
                "several with torchrun --nproc-per-node N -m bayeslora_cli train … or srun, or "
                "leave the option out"
            )
    device = processes.assign_device(device)
    graphs = device.type == "cuda" and not config.eager and not config.shard
    if config.shard:
        processes.mesh(device)  # the first call connects, which all processes do together
    with processes.all_or_none():
        set_precision(config.precision, deterministic=config.deterministic)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        data = Data(config, prepared.tokens(), device, processes)
        if graphs and find_spec("triton"):
            # whether a backbone packs its rows is known only when it is built
            head = objective_of(prepared.task).entry.head
            packed = not head or config.packing == ON
            if _is_worth_compiling(config, runs, packed=packed, head=head):
                start_compilers()
        setup = TrainingSetup(prepared, data, device, processes)
    processes.check_inputs(setup.checksums)
    if config.shard:
        logger.info("--shard: the step runs kernel by kernel, without CUDA graphs and the compiler")
    elif graphs:
        packed, head = setup.network.packed, bool(setup.network.head)
        compiled = _is_worth_compiling(config, runs, packed=packed, head=head)
        setup.capture(config, compiled=compiled)
    elif config.compile == "on":
        logger.warning("--compile on has no effect on a %s", device.type.upper())
    return setup


def _is_worth_compiling(
    config: RunConfig, runs: int, *, packed: bool = False, head: bool = False
) -> bool:
    """Decide whether to compile, by the steps of all `runs` that share the compiled code.

    A deterministic run counts only its own steps: it must give the same bits in a sweep as on its
    own.
    """
    steps = config.total_steps * (1 if config.deterministic else runs)
    return is_worth_compiling(config.compile, steps, packed=packed, head=head)


class TrainingSetup:
    """Network, optimizer, allocator, step and data on a device, in a run's initial state.

    All state is in `parts`. Tensors keep their addresses from run to run, which captured steps read
    and write.
    """

    def __init__(
        self, prepared: PreparedRun, data: Data, device: torch.device, processes: Processes
    ) -> None:
        """Load the network and move it to the device.

        Raises:
            ModelError: raised by `build_network` and `check_tokens`.
        """
        config, maker = prepared.config, OPTIMIZERS[prepared.config.optimizer]
        method = find_method(config.method)
        self.kind, self.task = kind(config), prepared.task
        self._compiled = False  # whether `compile_kernels` was called
        self.data, self.device, self.processes = data, device, processes
        self.network = build_network(
            config,
            objective_of(prepared.task),
            prepared.tokenizer,
            posterior=maker.posterior,
            device=device,
            mesh=processes.mesh(device) if config.shard else None,
        )
        check_tokens(self.network.module, config.model, prepared.tokens().values())
        self.architecture = self.network.module.config.to_dict()
        self.identity = model_identity(config.model, trust_remote_code=config.trust_remote_code)
        """What the backbone is, as environment.json has it."""
        sampled = self.network.backbone_sha256
        self.checksums = {
            "the backbone's weights have": f"{sampled} {checksum(self.identity)}",
            "the data or their tokens have": data.fingerprint,
        }
        self.noise = torch.Generator(device).manual_seed(processes.seed(config.seed))
        self.optimizer = build_optimizer(config, self.network.bank, data.training_rows, self.noise)
        self.allocator = method.allocator(config, self.network, self.noise, processes)
        if config.start_from is not None:
            source = begin_from(config, self.network, self.optimizer, self.allocator)
            self.checksums["what --from names has"] = source
        self.step = TrainStep(
            self.network,
            self.optimizer,
            self.allocator,
            learning_rate=learning_rate(config),
            orth_reg=method.orthogonality(config),
            samples=config.train_samples,
            processes=processes,
        )
        self.parts: dict[str, Stateful] = {
            "bank": self.network.bank,
            "optimizer": self.optimizer,
            "step": self.step,
        }
        if self.allocator is not None:
            self.parts["allocator"] = self.allocator

    def capture(self, config: RunConfig, *, compiled: bool) -> None:
        """Run the pieces of the step as CUDA graphs from now on, `compiled` or not."""
        # captures and the work before them need one stream, other than the default one
        torch.cuda.synchronize(self.device)
        torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        single = self.processes.world == 1
        self.step.runner = runner = GraphRunner([self.noise], may_run_eagerly=single)
        if compiled:
            # several processes compile at the same time: one that waited for a lock would block all
            if single:
                block = find_method(config.method).block_key(config)
                runner.around_first = partial(compiled_once, config, block)
            compile_blocks(self.network.module, dynamic=None if self.network.packed else False)
            self.step.compile()

    def compile_kernels(self, batches: Callable[[], Sequence[dict[str, Tensor]]]) -> None:
        """Compile our kernels that a pass of the backbone launches side by side, once.

        A first step compiles each where it is first launched. The pass counts for nothing; torch's
        compiler is left out of it.

        Args:
            batches: returns the micro-batches of a step.
        """
        if self._compiled or self.device.type != "cuda" or self.network.divided:
            return
        self._compiled = True
        if find_spec("triton"):
            from bayeslora_cli.models.kernels.side_by_side_triton import compiled_side_by_side

            for batch in batches()[:1]:
                with uncompiled(), compiled_side_by_side():
                    self.step.take_part(batch)

    def reset(self, prepared: PreparedRun, processes: Processes) -> bool:
        """Reset to the initial state of another run; return whether this setup fits that run.

        A fresh setup on the CPU draws everything that depends on the seed, and is copied to this
        one.

        Raises:
            ModelError: the backbone can no longer be loaded.
        """
        wanted = kind(prepared.config), prepared.task, processes
        if self.network.divided or (self.kind, self.task, self.processes) != wanted:
            return False
        if tokens_fingerprint(prepared.tokens().values()) != self.data.fingerprint:
            return False
        # nothing that is drawn depends on how frozen weights are stored; quantizing takes minutes
        drawn = replace(prepared, config=replace(prepared.config, base_precision=None))
        fresh = TrainingSetup(drawn, self.data, torch.device("cpu"), processes)
        if not self._is_made_as(fresh):
            return False
        with torch.no_grad():
            transfer(fresh.parts, self.parts)
            for name, value in fresh.network.drawn.items():
                self.network.set_drawn(name, value)
        # captured steps draw from this generator
        self.noise.manual_seed(fresh.noise.initial_seed())
        return True

    def _is_made_as(self, fresh: TrainingSetup) -> bool:
        """Return whether the backbone's tensors are as loaded: some models count in buffers."""
        buffers = self.network.module.buffers(), fresh.network.module.buffers()
        return (
            self.checksums == fresh.checksums
            and self.architecture == fresh.architecture
            and all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(*buffers, strict=True))
        )
