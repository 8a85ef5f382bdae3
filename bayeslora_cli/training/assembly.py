"""What a run's steps are made with; the next run takes it over, if it differs in the seed alone."""

from __future__ import annotations

import gc
import logging
from functools import partial

import torch

from bayeslora_cli.bayes.optimizer import build_optimizer
from bayeslora_cli.config.catalogue import OPTIMIZERS
from bayeslora_cli.config.run_config import RunConfig, kind
from bayeslora_cli.data.splits import Data, tokens_fingerprint
from bayeslora_cli.data.tokenization import TokenisedSplit
from bayeslora_cli.execution.compilation import compile_blocks, compiled_once, is_worth_compiling
from bayeslora_cli.execution.cuda_graphs import GraphRunner
from bayeslora_cli.execution.device import pick_device, set_precision
from bayeslora_cli.execution.processes import SINGLE, Processes
from bayeslora_cli.methods.building import build_network
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.models.backbones.loading import Labels
from bayeslora_cli.runs.checkpoint import Stateful, transfer
from bayeslora_cli.training.preparation import Prepared, learning_rate
from bayeslora_cli.training.step import TrainStep

logger = logging.getLogger("bayeslora")


def rig_for(prepared: Prepared, processes: Processes = SINGLE) -> Rig:
    """The last run's rig at this one's beginning, if it will do; else a new one, the old one freed.

    Until somebody puts it back into `prepared.shared` no other run gets it.

    Raises:
        UserError: data, model or device that the user can mend.
    """
    kept: Rig | None = prepared.shared.rig
    prepared.shared.rig = None
    with processes.all_or_none():
        taken = kept is not None and kept.begin(prepared, processes)
    if not all(processes.gather(taken)):
        kept = None
    gc.collect()  # a network is full of cycles: the old one, or what the new draws came from
    if kept is not None:
        logger.debug("the last run's network is used again, from this run's beginning")
        return kept
    torch.cuda.empty_cache()  # other processes may be on the same GPU
    with processes.all_or_none():
        device = pick_device(prepared.config.device)
    device = processes.assign_device(device)
    with processes.all_or_none():
        set_precision(prepared.config.precision, deterministic=prepared.config.deterministic)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        data = Data(prepared.config, _tokens(prepared), device, processes)
        rig = Rig(prepared, data, device, processes)
    processes.check_inputs(rig.checksums)
    if device.type == "cuda" and not prepared.config.eager:
        rig.capture(prepared.config, compiled=_is_worth_compiling(prepared))
    elif prepared.config.compile == "on":
        logger.warning("--compile on has no effect on a %s", device.type.upper())
    return rig


def _is_worth_compiling(prepared: Prepared) -> bool:
    """By the steps of all runs that share what is compiled.

    But a run that is to have the same bits has them wherever it is trained.
    """
    config = prepared.config
    assert config.schedule_steps is not None
    runs = 1 if config.deterministic else prepared.shared.alike
    return is_worth_compiling(config.compile, config.schedule_steps * runs)


def _tokens(prepared: Prepared) -> dict[str, TokenisedSplit]:
    config, task = prepared.config, prepared.task
    return prepared.shared.tokens(config, task, prepared.examples, prepared.tokenizer)


class Rig:
    """Network, optimizer, allocator, step and data on a device, as a run begins.

    All state is in `parts`. Tensors stay where they are from run to run, as captured steps want.
    """

    def __init__(
        self, prepared: Prepared, data: Data, device: torch.device, processes: Processes
    ) -> None:
        """Loads and moves the network.

        Raises:
            ModelError: as `build_network` does.
        """
        config, maker = prepared.config, OPTIMIZERS[prepared.config.optimizer]
        method = find_method(config.method)
        self.kind, self.task = kind(config), prepared.task
        self.data, self.device, self.processes = data, device, processes
        self.network = build_network(
            config,
            Labels(classes=prepared.task.classes),
            prepared.tokenizer,
            posterior=maker.posterior,
            device=device,
        )
        self.architecture = self.network.module.config.to_dict()
        self.checksums = {
            "the backbone's weights have": self.network.backbone_sha256,
            "the data or their tokens have": data.fingerprint,
        }
        self.noise = torch.Generator(device).manual_seed(processes.seed(config.seed))
        self.optimizer = build_optimizer(config, self.network.bank, data.training_rows, self.noise)
        self.allocator = method.allocator(config, self.network, self.noise, processes)
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
        """Run pieces of the step as CUDA graphs from here on, `compiled` or as they are."""
        # captures and what comes before them want one stream, and not the default one
        torch.cuda.synchronize(self.device)
        torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        alone = self.processes.world == 1
        self.step.runner = runner = GraphRunner([self.noise], alone=alone)
        if compiled:
            if alone:  # several compile in step: one that waits for a lock would stop all
                block = find_method(config.method).block_key(config)
                runner.around_first = partial(compiled_once, config, block)
            compile_blocks(self.network.module)
            self.step.compile()

    def begin(self, prepared: Prepared, processes: Processes) -> bool:
        """Go to the beginning of another run; returns whether this rig is one for it.

        What the seed decides is drawn as always, by a rig on the CPU, and copied from there.

        Raises:
            ModelError: the backbone cannot be loaded any more.
        """
        wanted = kind(prepared.config), prepared.task, processes
        if (self.kind, self.task, self.processes) != wanted:
            return False
        if tokens_fingerprint(_tokens(prepared).values()) != self.data.fingerprint:
            return False
        fresh = Rig(prepared, self.data, torch.device("cpu"), processes)
        if not self._is_made_as(fresh):
            return False
        with torch.no_grad():
            transfer(fresh.parts, self.parts)
            for name, value in fresh.network.drawn.items():
                self.network.set_drawn(name, value)
        self.noise.manual_seed(fresh.noise.initial_seed())  # captured steps know this one alone
        return True

    def _is_made_as(self, fresh: Rig) -> bool:
        """Whether the backbone is the same still, and as it was loaded: some count in buffers."""
        buffers = self.network.module.buffers(), fresh.network.module.buffers()
        return (
            self.checksums == fresh.checksums
            and self.architecture == fresh.architecture
            and all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(*buffers, strict=True))
        )
