"""What is said of a posterior: of what was put into it, and the same of its file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import spearmanr

from bayeslora_cli.bayes import posterior
from bayeslora_cli.bayes.gaussian import FactorisedGaussian
from tests.support.networks import build, randomise

ROWS = 400
FIELDS = {"hessian_over_h0", "sigma_ratio", "snr_magnitude_correlation", "note"}


def built(backbone, **changes):
    changes = {"hess_init": 0.1, "weight_decay": 1e-4, "optimizer": "ivon", **changes}
    return build(backbone("bert"), **changes)


def summary(network, config, ratio, *, rows=ROWS):
    """Of h = ratio * h0, ratio (N,); padding and pruned triplets hold nonsense."""
    bank = network.bank
    ess = config.ess or config.ess_per_example * rows
    sigma = (ess * (ratio * config.hess_init + config.weight_decay)).rsqrt()
    inside = torch.zeros(bank.size, dtype=torch.bool)
    for segment in bank.segments.values():
        segment.view(inside).fill_(True)
    sigma[~inside] = 1e9
    if bank.has_singular_values:
        for index, matrix in enumerate(bank.matrices):
            pruned = bank.mask[index] == 0
            bank.segments[f"{matrix.name}.lora_A"].view(sigma)[pruned] = 1e9
            bank.segments[f"{matrix.name}.lora_B"].view(sigma)[:, pruned] = 1e9
            bank.segments[f"{matrix.name}.lora_E"].view(sigma)[pruned] = 1e9
    at = FactorisedGaussian(
        layout=bank.layout, mean=bank.mean.clone(), sigma=sigma, mask=bank.mask.clone()
    )
    return at.summary(config, rows), at


def spread(bank, low, high, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.empty(bank.size).uniform_(low, high, generator=generator)


@pytest.mark.parametrize("changes", [{}, {"ess_per_example": 7.0}, {"ess": 1e6}])
def test_of_a_hessian_that_has_learnt(changes, backbone):
    network, config = built(backbone, target_modules=("all-linear",), **changes)
    randomise(network)
    # each parameter has a level of its own, so that triplets change places
    ratio = spread(network.bank, 0.5, 1.5)
    for place, segment in enumerate(network.bank.segments.values()):
        segment.view(ratio).mul_(0.5 * 2.0 ** (place * 7 % 5))
    found, at = summary(network, config, ratio)
    assert found.keys() == FIELDS
    assert found["note"] is None
    expected = slow_kept(network, at, ratio).quantile(torch.tensor([0.05, 0.5, 0.95]))
    assert list(found["hessian_over_h0"]) == ["q05", "median", "q95"]
    got = list(found["hessian_over_h0"].values())
    assert got == pytest.approx(expected.tolist(), rel=1e-3)
    high, low = (0.1 * found["hessian_over_h0"][q] + 1e-4 for q in ("q95", "q05"))
    assert found["sigma_ratio"] == pytest.approx((high / low) ** 0.5)
    assert found["snr_magnitude_correlation"] == pytest.approx(slow_agreement(network, at))
    assert 0 < found["snr_magnitude_correlation"] < 0.95


def slow_kept(network, at, flat):
    """The elements of a flat buffer that the posterior's file holds, a parameter at a time."""
    kept = []
    names = [m.name for m in network.bank.matrices]
    for name, segment in network.bank.segments.items():
        value = segment.view(flat)
        matrix, _, part = name.rpartition(".lora_")
        if matrix in names:
            keep = at.mask[names.index(matrix)].bool()
            value = value[:, keep] if part == "B" else value[keep]
        kept.append(value.flatten())
    return torch.cat(kept)


def slow_agreement(network, at):
    """Spearman's correlation of kept triplets' scores, a triplet at a time."""
    bank = network.bank
    scores = []
    for index, matrix in enumerate(bank.matrices):
        mean, sigma = (
            [bank.segments[f"{matrix.name}.lora_{part}"].view(flat).double() for part in "EAB"]
            for flat in (at.mean, at.sigma)
        )
        for k in range(bank.rank):
            if at.mask[index, k]:
                e, a, b = mean[0][k].abs(), mean[1][k].abs(), mean[2][:, k].abs()
                magnitude = e + a.mean() + b.mean()
                snr = e / sigma[0][k] + (a / sigma[1][k]).mean() + (b / sigma[2][:, k]).mean()
                scores.append((float(snr), float(magnitude)))
    return spearmanr(*zip(*scores, strict=True))[0]


def test_of_the_file_as_of_the_run(backbone, tmp_path):
    network, config = built(backbone)
    randomise(network)
    found, at = summary(network, config, spread(network.bank, 0.2, 5.2))
    posterior.save(tmp_path / "p.safetensors", network, at)
    other, _ = built(backbone, seed=9)
    loaded = posterior.load(tmp_path / "p.safetensors", other)
    again = loaded.summary(config, ROWS)
    assert again == found


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.91, 0.94, "the Hessian has stayed near its initial value (h/h0 0.91"),
        (0.92, 1.08, "the Hessian has stayed near its initial value (h/h0 0.92"),
        (0.5, 0.51, "the Hessian is nearly the same for all elements (h/h0 0.5"),
        (30, 31, "the Hessian is nearly the same for all elements (h/h0 30"),
        (0.8, 1.2, None),
        (0.5, 0.7, None),
    ],
)
def test_the_note(low, high, expected, backbone):
    network, config = built(backbone)
    randomise(network)
    found, _ = summary(network, config, spread(network.bank, low, high))
    if expected is None:
        assert found["note"] is None
        return
    assert found["note"].startswith(expected)
    assert (
        "sigma is almost constant, snr ranks the triplets as magnitude does (rank correlati"
        in (found["note"])
    )
    assert "--ess), not of the data" in found["note"]
    assert found["note"].endswith("--preset learned-posterior has settings with which it learns")
    assert "precision" not in found["note"]
    assert "\n" not in found["note"]


def test_the_note_of_precision(backbone):
    network, config = built(backbone, criterion="precision")
    randomise(network)
    found, _ = summary(network, config, spread(network.bank, 0.99, 1.0))
    assert "precision has next to nothing to rank them by" in found["note"]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_methods_without_triplets_to_score(method, backbone):
    network, config = built(backbone, method=method, criterion=None, target_rank=3)
    found, _ = summary(network, config, spread(network.bank, 0.99, 1.0))
    assert found["snr_magnitude_correlation"] is None
    assert "sigma is almost constant, and the predictive uncertainty is that of" in found["note"]


def test_a_single_triplet_has_no_order(backbone):
    network, config = built(backbone)
    network.bank.mask.zero_()
    network.bank.mask[1, 2] = 1
    found, _ = summary(network, config, spread(network.bank, 0.5, 1.0))
    assert found["snr_magnitude_correlation"] is None


def test_a_point_estimate_has_no_summary(backbone):
    network, config = built(backbone)
    _, at = summary(network, config, spread(network.bank, 1, 2))
    assert replace(at, sigma=None).summary(config, ROWS) is None
