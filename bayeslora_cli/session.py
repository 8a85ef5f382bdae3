"""What a training works with: network, data, optimizer, allocator, and the state of it all."""

from __future__ import annotations

import torch

from bayeslora_cli.allocator import Allocator, RankAllocator
from bayeslora_cli.backbone import Labels
from bayeslora_cli.batches import Feed, TrainOrder, steps_per_epoch
from bayeslora_cli.capture import GraphRunner, Runner, run_eagerly
from bayeslora_cli.checkpoint import Stateful
from bayeslora_cli.compiler import compile_blocks, is_worth_compiling
from bayeslora_cli.criteria import CRITERIA
from bayeslora_cli.device import pick_device, set_precision
from bayeslora_cli.fingerprint import data_fingerprint
from bayeslora_cli.gate_training import gate_trainer
from bayeslora_cli.model import METHODS, build_network
from bayeslora_cli.optim import OPTIMIZERS
from bayeslora_cli.passes import Batches
from bayeslora_cli.prepare import Prepared, learning_rate, rank_budget
from bayeslora_cli.processes import ALONE, Alone
from bayeslora_cli.state import BestSoFar, Generators, Inputs, Loop
from bayeslora_cli.step import TrainStep


class Session:
    """What a training works with, ready for its first step."""

    def __init__(self, prepared: Prepared, processes: Alone = ALONE) -> None:
        """Loads, tokenises and moves to the device; writes nothing.

        Raises:
            UserError: data, model or device that the user can mend.
        """
        config = prepared.config
        assert config.schedule_steps is not None
        self.config, self.task, self.run = config, prepared.task, prepared.run
        self.processes = processes
        self.total = config.schedule_steps
        with processes.as_one():
            device = pick_device(config.device)
        self.device = processes.take(device)
        with processes.as_one():
            checksums = self._load(prepared)
        processes.same(checksums)
        self._build(checksums)

    def _load(self, prepared: Prepared) -> dict[str, str]:
        """Network and data; checksums of what they are made from."""
        config, task, tokenizer = self.config, self.task, prepared.tokenizer
        set_precision(config.precision, deterministic=config.deterministic)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

        maker = OPTIMIZERS[config.optimizer]
        self.network = build_network(
            config,
            Labels(classes=task.classes),
            tokenizer,
            posterior=maker.posterior,
            device=self.device,
        )
        splits = prepared.shared.tokens(config, task, prepared.examples, tokenizer)
        checksums = {
            "the backbone's weights have": self.network.backbone_sha256,
            "the data or their tokens have": data_fingerprint(
                tensor
                for split in splits.values()
                for tensor in (split.tokens, split.offsets, split.token_types, split.labels)
            ),
        }
        train_split = splits.pop("train")
        self.splits = {
            name: Batches(split, config.eval_batch_size, self.device, self.processes)
            for name, split in splits.items()
        }
        self.training_rows = len(train_split)
        self.feed = Feed(train_split, self.device)
        self.order = TrainOrder(
            len(train_split), config.batch_size, config.seed,
            group_by=train_split.lengths if config.group_by_length else None,
        )  # fmt: skip
        self.steps_per_epoch = steps_per_epoch(len(train_split), config.batch_size)
        return checksums

    def _build(self, checksums: dict[str, str]) -> None:
        """What trains the network."""
        config, maker = self.config, OPTIMIZERS[self.config.optimizer]
        noise = torch.Generator(self.device).manual_seed(self.processes.seed(config.seed))
        self.optimizer = maker.build(config, self.network.bank, self.training_rows, noise)
        self.allocator = self._allocator(noise)
        self.step = TrainStep(
            self.network,
            self.optimizer,
            self.allocator,
            learning_rate=learning_rate(config),
            orth_reg=config.orth_reg if METHODS[config.method].adaptive else 0.0,
            samples=config.train_samples,
            runner=self._runner(noise),
            processes=self.processes,
        )
        if self._is_captured and is_worth_compiling(config.compile, self.total):
            compile_blocks(self.network.module)
            self.step.compile()
        self.loop = Loop()
        self.best = BestSoFar(self.network.bank, posterior=maker.posterior)
        self.generators = Generators(self.device, noise, self.processes)
        self.parts: dict[str, Stateful] = {
            "inputs": Inputs(checksums),
            "bank": self.network.bank,
            "optimizer": self.optimizer,
            "step": self.step,
            "generators": self.generators,
            "loop": self.loop,
            "best": self.best,
        }
        if self.allocator is not None:
            self.parts["allocator"] = self.allocator

    @property
    def _is_captured(self) -> bool:
        return self.device.type == "cuda" and not self.config.eager

    def _runner(self, noise: torch.Generator) -> Runner:
        if not self._is_captured:
            return run_eagerly
        # captures and what comes before them want one stream, and not the default one
        torch.cuda.synchronize(self.device)
        torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        return GraphRunner([noise])

    def _allocator(self, noise: torch.Generator) -> Allocator | None:
        """Who decides on the ranks of a method that does not keep them."""
        config, network = self.config, self.network
        if network.gates is not None:
            return gate_trainer(config, network, noise, self.processes)
        if config.criterion is None:
            return None
        budget = rank_budget(config, len(network.bank.matrices))
        return RankAllocator(network.bank, CRITERIA[config.criterion], budget)
