"""Criteria against mpmath twins at 50 digits, from x = |mu|/sigma = 0 to 1e8 and in both dtypes."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bayeslora_cli.bayes.criteria import ElementStatistics, load_criterion, snr_abs
from bayeslora_cli.config.catalogue import CRITERIA

DTYPES = (torch.float32, torch.float64)
MP = mpmath.mp.clone()
MP.dps = 50
# Largest relative error, in units of the dtype's epsilon. One rounding is half a unit: a quotient,
# a reciprocal and a product have one (and 0 is exact). For snr-abs the largest seen over 10^5
# points is 3.9, from some ten roundings near x = 1e-3 to 1, so 5 leaves no room for a new one.
ROUNDINGS = {"sensitivity": 0.5, "snr": 0.5, "snr-abs": 5.0, "magnitude": 0.0, "precision": 0.5}
# inputs stay in the range where neither mu/sigma nor its square leaves fp32's normal numbers
SIGMAS = (1e-6, 0.00735, 0.99, 1.0, 3.3)


def twin(name, mean, sigma):
    """The paper's formulas as written, in arithmetic that can afford their cancellation."""
    mu, sigma = MP.mpf(mean), MP.mpf(sigma)
    if name == "snr":
        return abs(mu) / sigma
    if name == "magnitude":
        return abs(mu)
    if name == "precision":
        return 1 / sigma
    assert name == "snr-abs"
    phi = (1 + MP.erf(mu / sigma / MP.sqrt(2))) / 2
    expected = mu * (2 * phi - 1) + 2 * sigma / MP.sqrt(2 * MP.pi) * MP.exp(
        -(mu**2) / (2 * sigma**2)
    )
    return expected / MP.sqrt(sigma**2 + mu**2 - expected**2)


def score(name, means, sigma, dtype):
    mean = torch.tensor(means, dtype=dtype)
    return load_criterion(name).score(
        ElementStatistics(mean=mean, sigma=torch.full_like(mean, sigma))
    )


def assert_close(name, means, sigma, dtype):
    """Every element within the criterion's bound of the twin at the inputs as rounded to dtype."""
    bound = ROUNDINGS[name] * torch.finfo(dtype).eps
    sigma = torch.tensor(sigma, dtype=dtype).item()
    means = torch.tensor(means, dtype=dtype).tolist()
    for mean, got in zip(means, score(name, means, sigma, dtype).tolist(), strict=True):
        truth = twin(name, mean, sigma)
        assert abs(got - truth) <= bound * truth, (name, dtype, mean, sigma, got, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "sensitivity"])
def test_grid(name, dtype):
    # x = 0, decades to 1e8, and densely where snr-abs turns from its constant into x
    xs = [0.0, *torch.logspace(-8, 8, 81).tolist(), *torch.linspace(0, 12, 121).tolist()]
    for sigma in SIGMAS:
        assert_close(name, [x * sigma for x in xs], sigma, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in CRITERIA if n != "sensitivity"])
@settings(max_examples=60, deadline=None)
@given(
    exponents=st.lists(st.floats(-8, 8), min_size=1, max_size=8),
    sigma=st.floats(1e-7, 10),
    negative=st.booleans(),
)
def test_anywhere(name, dtype, exponents, sigma, negative):
    sign = -1 if negative else 1
    assert_close(name, [sign * sigma * 10**e for e in exponents], sigma, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(average=st.floats(1e-12, 1e6), deviation=st.floats(1e-12, 1e6))
def test_sensitivity_is_the_product(dtype, average, deviation):
    average, deviation = (torch.tensor([v], dtype=dtype) for v in (average, deviation))
    statistics = ElementStatistics(mean=average, sensitivity=average, uncertainty=deviation)
    truth = MP.mpf(average.item()) * MP.mpf(deviation.item())
    got = load_criterion("sensitivity").score(statistics).item()
    assert abs(got - truth) <= ROUNDINGS["sensitivity"] * torch.finfo(dtype).eps * truth


@pytest.mark.parametrize("dtype", DTYPES)
def test_snr_abs_of_a_half_normal(dtype):
    """At mu = 0, |theta| is half normal: mean sqrt(2/pi) sigma, variance (1 - 2/pi) sigma^2."""
    expected = math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)
    for sigma in SIGMAS:
        got = score("snr-abs", [0.0, -0.0], sigma, dtype).tolist()
        assert got == pytest.approx([expected] * 2, rel=5 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_snr_abs_never_falls(dtype):
    """Masks come from an order: more signal must not rank lower, but for two values' rounding."""
    x = torch.cat([torch.logspace(-8, 8, 20001), torch.linspace(0, 12, 20001)]).to(dtype)
    x = x.sort().values
    got = snr_abs(ElementStatistics(mean=x, sigma=torch.ones_like(x)))
    highest = got.cummax(0).values
    assert ((highest - got) / highest).max() <= 2 * ROUNDINGS["snr-abs"] * torch.finfo(dtype).eps
    # and it does grow, from a constant to x itself
    assert got[0] < 1.33
    assert got[-1] == x[-1]


@settings(max_examples=40, deadline=None)
@given(x=st.floats(0, 1e8), y=st.floats(0, 1e8))
def test_snr_abs_orders_as_snr(x, y):
    x, y = sorted((x, y))
    # x apart by more than s's error, where s has left its flat foot
    assume(x >= 1 and y > x * (1 + 1e-5))
    low, high = score("snr-abs", [x, y], 1.0, torch.float32).tolist()
    assert low < high


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CRITERIA)
@settings(max_examples=40, deadline=None)
@given(means=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), sigma=st.floats(0.01, 10))
def test_sign_does_not_matter(name, dtype, means, sigma):
    """The two directions of a parameter are the same, to the last bit."""
    mean = torch.tensor(means, dtype=dtype)
    rest = {
        "sigma": torch.full_like(mean, sigma),
        "sensitivity": torch.full_like(mean, 0.3),
        "uncertainty": torch.full_like(mean, 0.7),
    }
    function = load_criterion(name).score
    there = function(ElementStatistics(mean=mean, **rest))
    back = function(ElementStatistics(mean=-mean, **rest))
    assert torch.equal(there, back)
    assert (there >= 0).all()


@pytest.mark.parametrize(("x", "tolerance", "at_most"), [(1e3, 1e-4, 0.1), (1e4, 0.1, 0.0)])
def test_the_textbook_form_is_lost_in_fp32(x, tolerance, at_most):
    """Why snr-abs is not written as the paper prints it: sigma^2 + mu^2 - E^2 cancels."""
    sigma = torch.linspace(0.5, 2, 1000)
    mu = x * sigma
    expected = mu * torch.erf(mu / sigma / math.sqrt(2)) + 2 * sigma / math.sqrt(
        2 * math.pi
    ) * torch.exp(-mu.square() / (2 * sigma.square()))
    textbook = expected / (sigma.square() + mu.square() - expected.square()).sqrt()

    def share(got, tolerance):  # at these x, s is x to less than any fp32 rounding
        return ((got - x).abs() <= tolerance * x).float().mean().item()

    assert float(twin("snr-abs", x, 1.0)) == pytest.approx(x, rel=1e-12)
    assert share(textbook, tolerance) <= at_most
    ours = snr_abs(ElementStatistics(mean=mu, sigma=sigma))
    assert share(ours, 1e-6) == 1


class Recorder:
    """Statistics that note which of them are read."""

    def __init__(self):
        self.read = set()

    def __getattr__(self, name):
        self.read.add(name)
        return torch.tensor([0.5, 2.0])


@pytest.mark.parametrize("name", CRITERIA)
def test_flags_say_what_is_read(name):
    """The flags decide what a run keeps: too few break it, too many cost time at every step."""
    criterion, recorder = load_criterion(name), Recorder()
    criterion.score(recorder)
    assert CRITERIA[name].needs_posterior == ("sigma" in recorder.read)
    assert criterion.needs_gradient == ("sensitivity" in recorder.read)
    assert criterion.needs_gradient == ("uncertainty" in recorder.read)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("snr", "sigma"),
        ("snr-abs", "sigma"),
        ("precision", "sigma"),
        ("sensitivity", "sensitivity"),
        ("sensitivity", "uncertainty"),
    ],
)
def test_missing_statistics_raise(name, missing):
    ones = torch.ones(3)
    full = {"mean": ones, "sigma": ones, "sensitivity": ones, "uncertainty": ones}
    load_criterion(name).score(ElementStatistics(**full))
    with pytest.raises(AssertionError):
        load_criterion(name).score(ElementStatistics(**(full | {missing: None})))


@pytest.mark.parametrize("name", CRITERIA)
def test_inputs_are_left_alone(name):
    """They are views of the bank: an in-place operation would change the model."""
    values = {
        field: torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(i)) - 0.5 * (i == 0)
        for i, field in enumerate(("mean", "sigma", "sensitivity", "uncertainty"))
    }
    before = {field: value.clone() for field, value in values.items()}
    got = load_criterion(name).score(ElementStatistics(**values))
    assert got.shape == (2, 3, 4)
    assert all(torch.equal(values[field], before[field]) for field in values)
    assert all(got.data_ptr() != value.data_ptr() for value in values.values())
