"""The distribution of the scores and the threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.run_groups import load_group
from bayeslora_cli.reports.ranks.score_distribution import load_scores
from tests.support.ranked_runs import allocation, constant, names, write_run, write_seeds

NAMES = names(1)
REPORT = allocation(NAMES)


def with_scores(report, scores, kept=None):
    """The same matrices with other scores (matrices * init_rank), the largest kept."""
    rows = np.reshape(scores, (-1, 3)).tolist()
    if kept is None:
        kept = np.zeros(len(scores), dtype=bool)
        kept[np.argsort(-np.array(scores), kind="stable")[: report.budget]] = True
    masks = np.reshape(kept, (-1, 3)).tolist()
    matrices = tuple(
        replace(m, scores=tuple(row), kept=tuple(mask), rank=sum(mask))
        for m, row, mask in zip(report.matrices, rows, masks, strict=True)
    )
    return replace(report, matrices=matrices, budget=int(np.sum(kept)))


def scores_of(path, *reports, result=None):
    for i, report in enumerate(reports):
        write_run(path / f"seed-{i}", report, result=result)
    return load_scores(load_group([path]))


values = st.lists(
    st.just(0.0) | st.floats(1e-30, 1e30), min_size=3 * len(NAMES), max_size=3 * len(NAMES)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=3))
def test_the_histogram_holds_every_positive_score(tmp_path_factory, of_runs):
    path = tmp_path_factory.mktemp("scores")
    found = scores_of(path, *(with_scores(REPORT, scores) for scores in of_runs))
    histogram = found.histogram()
    positive = found.values > 0
    if histogram is None:
        assert not positive.any()
        return
    assert histogram.kept.sum() == (found.kept & positive).sum()
    assert histogram.pruned.sum() == (~found.kept & positive).sum()
    assert len(histogram.edges) == len(histogram.kept) + 1
    assert (np.diff(histogram.edges) > 0).all()
    # but for rounding of the edges
    assert found.values[positive].min() >= histogram.edges[0] * (1 - 1e-9)
    assert found.values[positive].max() <= histogram.edges[-1] * (1 + 1e-9)
    found.draw(width=80, colour=False, unicode=False)


@settings(max_examples=60, deadline=None)
@given(values)
def test_the_threshold_parts_the_bins(tmp_path_factory, scores):
    found = scores_of(tmp_path_factory.mktemp("scores"), with_scores(REPORT, scores))
    (threshold,) = found.thresholds
    assert (found.values >= threshold).sum() >= REPORT.budget > (found.values > threshold).sum()
    assert found.misplaced == (0,)
    histogram = found.histogram()
    if threshold:
        edge = np.argmin(np.abs(np.log(histogram.edges / threshold)))
        assert histogram.edges[edge] == pytest.approx(threshold, rel=1e-9)
        assert histogram.kept[:edge].sum() == 0
        # above lie the kept ones, and pruned ones of the same score alone
        assert histogram.pruned[edge:].sum() == (found.values[~found.kept] >= threshold).sum()


def test_kept_triplets_below_the_threshold_are_counted(tmp_path):
    """The choice was made earlier than the scores were taken."""
    scores = np.arange(1.0, 22.0)
    kept = scores > 7
    kept[[0, -1]] = kept[[-1, 0]]
    found = scores_of(tmp_path, with_scores(REPORT, scores, kept))
    assert found.thresholds == (8.0,)
    assert found.misplaced == (1,)
    assert (
        "-- threshold 8, 1 kept below ---"
        in found.draw(width=80, colour=False, unicode=False).plain
    )


def test_everything_kept(tmp_path):
    found = scores_of(tmp_path, with_scores(REPORT, np.arange(1.0, 22.0), np.ones(21, bool)))
    assert found.thresholds == (None,)
    text = found.draw(width=80, colour=False, unicode=False).plain
    assert "threshold" not in text
    assert "pruned  " not in text.splitlines()[-1]
    assert "pruned" not in found.to_json()["quantiles"]


def test_zeros_are_told(tmp_path):
    found = scores_of(tmp_path, with_scores(REPORT, [0.0] * 5 + [1.0] * 16))
    assert "5 scores are 0" in found.draw(width=80, colour=False, unicode=False).plain
    assert found.to_json()["zeros"] == 5


def test_quantiles_are_numpys(tmp_path):
    write_seeds(tmp_path, NAMES)
    found = load_scores(load_group([tmp_path]))
    parts = found.to_json()["quantiles"]
    assert list(parts) == [
        "all", "kept", "pruned", "W_q", "W_k", "W_v", "W_o", "W_f1", "W_f2", "W_pool",
    ]  # fmt: skip
    everything = [s for r in found.group.reports for m in r.matrices for s in m.scores]
    assert parts["all"]["50%"] == pytest.approx(np.median(everything))
    assert parts["all"]["triplets"] == len(everything) == 63
    assert parts["kept"]["triplets"] == parts["all"]["kept"] == 42
    assert sum(parts[kind]["triplets"] for kind in list(parts)[3:]) == 63
    of_kind = [s for r in found.group.reports for s in r.matrices[2].scores]
    assert parts["W_v"]["90%"] == pytest.approx(np.quantile(of_kind, 0.9))


SUMMARY = {
    "hessian_over_h0": {"q05": 0.9912, "median": 0.996, "q95": 1.0008},
    "sigma_ratio": 1.0049,
    "snr_magnitude_correlation": 0.9996,
    "note": None,
}
LINE = "h/h0 0.991 to 1, sigma 95%/5% 1, snr against magnitude 1.000"


def test_the_posterior_comes_last_a_line_a_run_and_one_note(tmp_path):
    note = "the Hessian has stayed: sigma is almost constant, and " + "so on " * 15
    for summary, written in ((SUMMARY, []), (SUMMARY | {"note": note.strip()}, [note.strip()])):
        result, where = {"posterior": summary}, tmp_path / str(len(written))
        where.mkdir()
        found = scores_of(where, REPORT, allocation(NAMES, seed=1), result=result)
        for unicode in (False, True):
            lines = found.draw(width=80, colour=False, unicode=unicode).plain.splitlines()
            first = lines.index(f"seed-0: {LINE}")
            assert lines[first - 1] == ""
            assert lines[first + 1] == f"seed-1: {LINE}"
            rest = " ".join(lines[first + 2 :])
            assert rest == "".join(f"note: {text}" for text in written)
            assert max(map(len, lines[first:])) <= 80
        assert found.to_json()["posterior"] == [summary] * 2


@pytest.mark.parametrize("result", [{}, {"posterior": None}])
def test_no_posterior(tmp_path, result):
    lines = scores_of(tmp_path, REPORT, result=result).draw(width=80, colour=False, unicode=False)
    assert lines.plain.splitlines()[-1].startswith("W_pool")


# ---- faults


def test_constant_ranks_have_no_scores(tmp_path):
    with pytest.raises(UserError, match=r"--scores: .*seed-0 has none, its ranks are constant"):
        scores_of(tmp_path, constant(REPORT))


def test_criteria_have_no_scale_in_common(tmp_path):
    with pytest.raises(UserError, match="the criteria snr, sensitivity have no scale in common"):
        scores_of(tmp_path, REPORT, allocation(NAMES, criterion="sensitivity"))


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_corrupt_result_is_named(tmp_path, content):
    run = write_run(tmp_path / "run", REPORT)
    run.result.unlink()
    if content is not None:
        run.result.write_bytes(content)
    with pytest.raises(RunDirError, match=r"run/result\.json is (missing|corrupt)"):
        load_scores(load_group([tmp_path]))
