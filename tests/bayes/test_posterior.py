"""The posterior's file: what is kept comes back, and nothing else is taken for it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bayeslora_cli.bayes import posterior
from bayeslora_cli.bayes.gaussian import FactorisedGaussian
from bayeslora_cli.errors import RunDirError
from tests.support.networks import batch_of, build, randomise

FEW = settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # each example sets what it reads of the fixture's network


def some_posterior(network, seed=1):
    bank = network.bank
    generator = torch.Generator().manual_seed(seed)
    return FactorisedGaussian(
        layout=bank.layout,
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
    save_file({**tensors, name: torch.zeros(1)}, path, metadata={"format": FactorisedGaussian.kind})
    with pytest.raises(RunDirError, match="does not fit"):
        posterior.load(path, network)


# ---- samples


@FEW
@given(seed=st.integers(0, 9999), temperature=st.sampled_from([0.0, 0.25, 1.0, 9.0]))
def test_samples(seed, temperature, small):
    """Element by element what the seed's noise says, the E of pruned triplets 0."""
    network, at = small
    bank = network.bank
    at.mask.copy_(torch.randint(0, 2, at.mask.shape, generator=torch.Generator().manual_seed(seed)))
    state = torch.get_rng_state()
    theta = at.sample(torch.Generator().manual_seed(seed), temperature)
    assert torch.equal(torch.get_rng_state(), state)
    noise = torch.randn(bank.size, generator=torch.Generator().manual_seed(seed)).double()
    expected = at.mean.double() + temperature**0.5 * at.sigma.double() * noise
    bank.singular_values(expected)[at.mask == 0] = 0
    torch.testing.assert_close(theta.double(), expected, rtol=1e-6, atol=1e-7)


@FEW
@given(seed=st.integers(0, 9999))
def test_a_pruned_triplet_has_no_say_in_a_sample(seed, small):
    """Whatever its A, B, E and their sigma: the logits stay."""
    network, at = small
    bank = network.bank
    generator = torch.Generator().manual_seed(seed)
    at.mask.copy_(torch.randint(0, 2, at.mask.shape, generator=generator))
    wild = FactorisedGaussian(
        layout=bank.layout, mean=at.mean.clone(), sigma=at.sigma.clone(), mask=at.mask
    )
    for index, matrix in enumerate(bank.matrices):
        pruned = at.mask[index] == 0
        for flat in (wild.mean, wild.sigma):
            bank.segments[f"{matrix.name}.lora_A"].view(flat)[pruned] = 5.0
            bank.segments[f"{matrix.name}.lora_B"].view(flat)[:, pruned] = 5.0
            bank.segments[f"{matrix.name}.lora_E"].view(flat)[pruned] = 5.0
    found = []
    for posterior_ in (at, wild):
        theta = posterior_.sample(torch.Generator().manual_seed(seed), 1.0)
        with torch.no_grad(), bank.showing(theta):
            found.append(network.logits(batch_of()))
    assert torch.equal(*found)


def test_showing_gives_theta_back(small):
    network, _ = small
    bank = network.bank
    before = bank.theta.clone()
    for error in (None, KeyError):
        with contextlib.suppress(KeyError), bank.showing(before + 1):
            assert torch.equal(bank.theta, before + 1)
            if error is not None:
                raise error
        assert torch.equal(bank.theta, before)
    bank.check_views()


@pytest.fixture
def small(backbone):
    network, _ = build(backbone("bert"))
    randomise(network)
    network.module.eval()
    return network, some_posterior(network)
