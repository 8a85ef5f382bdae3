"""The peak of a step on fake tensors against that of a real one, and the ways to lower it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bayeslora_cli.data.batching import largest_batch
from bayeslora_cli.training.memory.alternatives import Alternative, alternatives, cheapest
from bayeslora_cli.training.memory.described import memory_text, on_gpu
from bayeslora_cli.training.memory.estimate import estimate, peak_bytes
from bayeslora_cli.training.memory.live_bytes import BLOCK, LiveBytes
from tests.support.decoders import CAUSAL, token_rows
from tests.training.memory.test_estimate import (
    CPU,
    LABELS,
    META,
    build,
    config_for,
    factors_of,
    real_batch,
)

WAYS = ("off", "selective", "blocks")


def test_what_lives_at_the_same_time_is_counted_once():
    known = torch.zeros(1024)
    with LiveBytes([known]) as live:
        assert live.peak == 0
        one = known + 1
        view = one[3:].view(-1)
        del one
        assert live.now == 4096
        two = torch.empty(1, 1)
        assert live.now == 4096 + BLOCK
        del view, two
        assert live.now == 0
        known.mul_(2)
    assert live.peak == 4096 + BLOCK


def batch_of(network):
    if network.head:
        return real_batch(network)
    return {n: x for n, x in largest_batch(token_rows(), 1, CPU).items() if n != "count"}


def really_at_once(config, labels):
    network = build(config, CPU, labels)
    network.module.train()
    leaves = [leaf for layer in _owners(network) for leaf in (layer.down, layer.up)]
    for leaf in leaves:
        leaf.grad = None
    own = [*network.module.parameters(), *network.module.buffers(), *factors_of(network)]
    own += [x for x in vars(network.bank).values() if isinstance(x, torch.Tensor)]
    frozen = [x for joint in network.joints for x in joint.base_layer.parameters()]
    network.bank.publish()
    batch = batch_of(network)

    def step():
        network.objective.loss(network.logits(batch), batch).backward()

    return peak_bytes(step, [*own, *frozen, *batch.values()], leaves)


def _owners(network):
    joined = {id(layer) for joint in network.joints for layer in joint.layers}
    return [x for x in network.adapters.values() if id(x) not in joined] + list(network.joints)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("llama", "off"),
        ("llama", "selective"),
        ("llama", "blocks"),
        ("bert", "off"),
        ("bert", "blocks"),
    ],
)
def test_the_peak_is_that_of_a_real_pass(kind, what, backbone):
    labels = LABELS if kind == "bert" else CAUSAL
    config = config_for(backbone(kind, 0.1), gradient_checkpointing=what)
    network = build(config, META, labels)
    found = estimate(network, config, batch=batch_of(network), device=CPU, whole_step=True)
    factors = sum(x.nbytes for x in factors_of(build(config, CPU, labels)))
    passing = found.peak - found.weights - found.trained + factors
    assert passing == pytest.approx(really_at_once(config, labels), rel=0.01)


def test_every_combination_has_a_size_and_the_fastest_that_fits_is_named(backbone):
    config = config_for(backbone("llama"), precision="bf16")

    def made(wanted):
        return build(wanted, META, CAUSAL)

    batch = batch_of(made(config))
    found = alternatives(config, made, batch=batch, device=CPU, processes=2)
    assert len(found) == 3 * 4 * 2
    assert found[0].flags() == ""
    assert [x.cost for x in found] == sorted(x.cost for x in found)
    by = {(x.gradient_checkpointing, x.base_precision, x.shard): x.bytes for x in found}
    assert by["off", "nf4", False] < by["off", "int8", False] < by["off", None, False]
    assert by["blocks", None, False] < by["off", None, False]
    assert cheapest(found, 10**12, shards=False) == found[0]
    assert cheapest(found, 0, shards=True) is None
    room = by["selective", None, False]
    assert cheapest(found, room, shards=False).bytes <= room
    assert not cheapest(found, room, shards=False).shard
    # what is named is what the run would be
    wanted = replace(config, gradient_checkpointing="blocks", base_precision="nf4")
    own = estimate(made(wanted), wanted, batch=batch, device=CPU, whole_step=True)
    assert by["blocks", "nf4", False] == own.peak


def test_the_plan_names_what_fits():
    ways = [
        Alternative(gradient_checkpointing=what, base_precision=base, shard=shard, bytes=size)
        for what, base, shard, size in (
            ("off", None, False, 40 * 2**30), ("selective", None, False, 30 * 2**30),
            ("off", None, True, 25 * 2**30), ("blocks", "nf4", False, 20 * 2**30),
            ("off", "fp8", False, 28 * 2**30),
        )
    ]  # fmt: skip
    config = config_for("x")
    for processes, wanted in (
        (1, "--gradient-checkpointing blocks --base-precision nf4"),
        (2, "--shard"),
    ):
        found = on_gpu(config, 0, ways, 26 * 2**30, processes)
        assert found["peak_bytes"] == 40 * 2**30
        assert not found["fits"]
        assert found["cheapest_that_fits"] == wanted
        text = memory_text({"memory_bytes": {"weights": 2**20}, **found}, head=False)
        assert f"The fastest that fits: {wanted}" in "\n".join(text)
        assert text[0] == "Memory at a step's peak"
        assert text[-3:] == [
            "    recomputed: off            25.00         -         -",
            "    recomputed: blocks             -         -         -",
            "    recomputed: selective          -         -         -",
        ]
        facts = {"memory_bytes": {"weights": 2**20}, "without_gpu": True, **found}
        lines = memory_text(facts, head=False)
        assert "  fp8 needs a GPU of compute capability 8.9 or later" in lines
