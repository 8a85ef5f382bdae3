"""The posterior's file: what is kept comes back, and nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayeslora_cli import posterior
from bayeslora_cli.errors import RunDirError
from bayeslora_cli.posterior import Posterior

from .test_model import build, randomise


def some_posterior(network, seed=1):
    bank = network.bank
    generator = torch.Generator().manual_seed(seed)
    return Posterior(
        mean=bank.mean.clone(),
        sigma=torch.empty(bank.size).uniform_(0.01, 0.1, generator=generator),
        mask=bank.mask.clone(),
    )


@pytest.mark.parametrize("kind", ["deberta-v2", "bert"])
@pytest.mark.parametrize("method", ["adalora", "lora", "full"])
@pytest.mark.parametrize("sigma", [True, False])
def test_round_trip(kind, method, sigma, backbone, tmp_path):
    """For random ranks, 0 and full among them: kept elements to the bit, pruned ones 0."""
    changes = {"method": method} | (
        {} if method == "adalora" else {"criterion": None, "target_rank": 3}
    )
    network, _ = build(backbone(kind), **changes)
    if method != "full":
        randomise(network)
    if method == "lora":
        network.bank.mask.fill_(1)
    saved = some_posterior(network)
    saved.sigma = saved.sigma if sigma else None
    posterior.save(tmp_path / "p.safetensors", network, saved)
    other, _ = build(backbone(kind), seed=9, **changes)
    found = posterior.load(tmp_path / "p.safetensors", other)
    assert torch.equal(found.mask, saved.mask)
    assert (found.sigma is None) == (saved.sigma is None)
    for ours, theirs in ((found.mean, saved.mean), (found.sigma, saved.sigma)):
        if ours is None:
            continue
        for name, segment in network.bank.segments.items():
            value, expected = segment.view(ours), segment.view(theirs)
            if method == "adalora" and segment.role == "adapter":
                matrix, _, part = name.rpartition(".lora_")
                index = [m.name for m in network.bank.matrices].index(matrix)
                kept = saved.mask[index][:, None] if part != "B" else saved.mask[index][None]
                expected = expected * kept
            assert torch.equal(value, expected), name
    for name, value in network.drawn.items():
        assert torch.equal(other.drawn[name], value)


def test_faults(backbone, tmp_path):
    network, _ = build(backbone("bert"))
    path = tmp_path / "p.safetensors"
    with pytest.raises(RunDirError, match="is missing"):
        posterior.load(path, network)
    posterior.save(path, network, some_posterior(network))
    whole = path.read_bytes()
    for content in (b"", whole[:50], whole[:-7], b"\xff" * 99):
        path.write_bytes(content)
        with pytest.raises(RunDirError, match=r"corrupt|not a posterior"):
            posterior.load(path, network)
    path.write_bytes(whole)
    other, _ = build(backbone("bert"), target_modules=("dense",))
    with pytest.raises(RunDirError, match="another model or other target modules"):
        posterior.load(path, other)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(RunDirError, match="not a posterior of this version"):
        posterior.load(path, network)
    name = next(n for n in tensors if n.endswith("classifier.weight"))
    save_file({**tensors, name: torch.zeros(1)}, path, metadata={"format": posterior.FORMAT})
    with pytest.raises(RunDirError, match="does not fit"):
        posterior.load(path, network)
