"""IVON over the bank against ivon-opt and against the equations."""

from __future__ import annotations

import ivon
import pytest
import torch
from torch import nn

from bayeslora_cli.bayes.ivon import BankIVON
from bayeslora_cli.models.adapters.bank import AdapterBank
from bayeslora_cli.models.adapters.bank_layout import Matrix
from tests.bayes.test_optimizer import IVON, SHAPES, bank_of


def flat(bank, tensors):
    out = torch.zeros(bank.size)
    for segment, tensor in zip(bank.segments.values(), tensors, strict=True):
        segment.view(out).copy_(tensor)
    return out


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("samples", [1, 3])
def test_ivon_equals_ivon_opt_for_the_same_noise(shapes, samples, monkeypatch):
    torch.manual_seed(0)
    start = [torch.randn(s) for s in shapes]
    theirs = [nn.Parameter(p.clone()) for p in start]
    ours = [nn.Parameter(p.clone()) for p in start]
    reference = ivon.IVON(theirs, lr=0.3, mc_samples=samples, **IVON)
    bank = bank_of(ours, posterior=True)
    optimizer = BankIVON(bank, generator=torch.Generator(), lr=0.3, **IVON)
    target = [torch.randn(s) for s in shapes]
    noise = []

    class Recorded:
        """Stands in for torch.randn inside ivon-opt: the noise that our side gets as well."""

        def __call__(self, size, **_):
            return noise[-1]

    monkeypatch.setattr(torch, "randn", Recorded())
    generator = torch.Generator().manual_seed(1)

    def loss(parameters):
        return sum(
            ((p - t) ** 4).sum() + p.sin().sum() for p, t in zip(parameters, target, strict=True)
        )

    for step in range(100):
        rate = 0.3 * (1 - step / 120)
        reference.param_groups[0]["lr"] = rate
        for sample in range(samples):
            noise.append(torch.empty(sum(p.numel() for p in start)).normal_(generator=generator))
            with reference.sampled_params(train=True):
                reference.zero_grad()
                loss(theirs).backward()
            split = [
                n.view(s)
                for n, s in zip(noise[-1].split([p.numel() for p in start]), shapes, strict=True)
            ]
            bank.noise.copy_(flat(bank, split) * optimizer.sigma())
            bank.perturb(masked=False)
            bank.zero_local()
            loss(ours).backward()
            bank.collect()
            bank.accumulate(1 / samples, first=sample == 0)
        reference.step()
        optimizer.update(step, rate, torch.tensor(True))
    hessian, momentum = optimizer.tensors()["hessian"], optimizer.tensors()["momentum"]
    sizes = [p.numel() for p in theirs]
    for index, segment in enumerate(bank.segments.values()):
        torch.testing.assert_close(
            segment.view(bank.mean), theirs[index].data, rtol=1e-6, atol=1e-6
        )
        for mine, other in ((hessian, "hess"), (momentum, "momentum")):
            expected = reference.param_groups[0][other].split(sizes)[index].view(shapes[index])
            torch.testing.assert_close(segment.view(mine), expected, rtol=1e-5, atol=1e-6)


def test_ivon_keeps_the_librarys_checks():
    bank = bank_of([nn.Parameter(torch.ones(3))], posterior=True)
    with pytest.raises(ValueError, match="Hessian initialization"):
        BankIVON(bank, generator=torch.Generator(), lr=0.1, ess=10, hess_init=0.0)


def test_ivon_follows_the_equations_in_float64():
    """The design's own equations, written out slowly, for ten steps with clipping in force."""
    torch.manual_seed(3)
    start = torch.randn(6)
    bank = bank_of([nn.Parameter(start.clone())], posterior=True)
    optimizer = BankIVON(bank, generator=torch.Generator().manual_seed(5), lr=0.4, **IVON)
    ess, h0, b1, b2, delta, radius = (IVON[k] for k in IVON)
    m, h, momentum = start.double(), torch.full((6,), h0).double(), torch.zeros(6).double()
    segment = bank.segments["p0"]
    for t in range(1, 11):
        optimizer.sample(masked=False)
        noise = segment.view(bank.noise).double()
        g = (m + noise).cos() * 3
        segment.view(bank.local).copy_(g)
        bank.accumulate(1.0, first=True)
        optimizer.update(t - 1, 0.4, torch.tensor(True))
        momentum = b1 * momentum + (1 - b1) * g
        f = noise * g * (h + delta) * ess
        h = b2 * h + (1 - b2) * f + (1 - b2) ** 2 * (h - f) ** 2 / (2 * (h + delta))
        step = ((momentum / (1 - b1**t) + delta * m) / (h + delta)).clamp(-radius, radius)
        m = m - 0.4 * (h0 + delta) * step
    torch.testing.assert_close(segment.view(bank.mean).double(), m, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        segment.view(optimizer.sigma()).double(), (ess * (h + delta)) ** -0.5, rtol=1e-5, atol=0
    )


def test_noise_has_the_posteriors_scale_and_spares_pruned_triplets():
    rank, width, height = 4, 50, 30
    matrices = [
        Matrix(
            name=f"m{i}",
            a=nn.Parameter(torch.zeros(rank, width)),
            b=nn.Parameter(torch.zeros(height, rank)),
            e=nn.Parameter(torch.zeros(rank, 1)),
        )
        for i in range(40)
    ]
    bank = AdapterBank(matrices, [], posterior=True)
    optimizer = BankIVON(bank, generator=torch.Generator().manual_seed(0), lr=0.1, **IVON)
    bank.mask[::2, 1:3] = 0
    optimizer.sample(masked=True)
    values = bank.singular_values(bank.noise)
    assert bool((values[bank.mask == 0] == 0).all())
    assert bool((values[bank.mask == 1] != 0).all())
    relative = bank.noise[bank.mask.numel() :] / optimizer.sigma()[bank.mask.numel() :]
    assert relative.std().item() == pytest.approx(1.0, abs=0.02)
    optimizer.sample(masked=False)
    assert bool((bank.singular_values(bank.noise) != 0).all())


def test_a_prior_of_earlier_data_equals_learning_from_both_at_once():
    """Two linear regressions, one after the other: the exact posterior, in float64.

    Row i has y_i = x_i theta + noise of variance 1, and the x are such that X'X is diagonal, so
    that the exact posterior is a product. Task 1 gives N(m1, 1 / p1), which is the prior of task 2;
    the exact result is that of all rows together: precision p1 + X2'X2, mean by Bayes' rule.
    """
    draws = torch.Generator().manual_seed(0)
    size, rows = 6, 50.0
    precision = torch.rand(2, size, generator=draws, dtype=torch.float64) * 60 + 20  # X'X
    truth = torch.randn(2, size, generator=draws, dtype=torch.float64)

    def learn(task, prior=None):
        parameter = nn.Parameter(torch.zeros(1, size))
        bank = bank_of([parameter], posterior=True)
        optimizer = BankIVON(
            bank, generator=torch.Generator().manual_seed(1), lr=0.05, ess=rows, hess_init=1.0,
            beta1=0.9, beta2=0.999, weight_decay=0.2, clip_radius=float("inf"), mc_samples=1,
        )  # fmt: skip
        view = next(iter(bank.segments.values())).view
        if prior is not None:
            mean, sigma = torch.zeros(bank.size), torch.zeros(bank.size)
            view(mean).copy_(prior[0])
            view(sigma).copy_(prior[1])
            optimizer.set_prior(mean, sigma)
        for step in range(3000):
            optimizer.sample(masked=False)
            # the mean loss over `rows` rows
            slope = precision[task] * (view(bank.theta).double() - truth[task]) / rows
            bank.local.zero_()
            view(bank.local).copy_(slope)
            bank.accumulate(1.0, first=True)
            rate = 0.05 * (1 - step / 3000)
            optimizer.update(step, rate, torch.tensor(True))
        return view(bank.mean).double(), view(optimizer.sigma()).double()

    mean1, sigma1 = learn(0)
    twin1 = precision[0] + rows * 0.2
    torch.testing.assert_close(sigma1[0], twin1.rsqrt(), rtol=0.06, atol=0)
    torch.testing.assert_close(mean1[0], precision[0] * truth[0] / twin1, rtol=0, atol=0.02)
    mean2, sigma2 = learn(1, (mean1, sigma1))
    prior = sigma1[0] ** -2
    twin2 = prior + precision[1]
    exact = (prior * mean1[0] + precision[1] * truth[1]) / twin2
    torch.testing.assert_close(sigma2[0], twin2.rsqrt(), rtol=0.06, atol=0)
    torch.testing.assert_close(mean2[0], exact, rtol=0, atol=0.02)
