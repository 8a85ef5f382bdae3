"""Several runs: found on the disk, put together, compared."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import RunDirError, UserError
from bayeslora_cli.reports.ranks.rank_agreement import between
from bayeslora_cli.reports.ranks.run_groups import check_same, load_group, load_groups
from bayeslora_cli.runs.directory import RunDir
from tests.support.finished_runs import reseal
from tests.support.ranked_runs import (
    DECODER,
    allocation,
    constant,
    group,
    names,
    write_run,
    write_seeds,
)

NAMES = names(2)
REPORT = allocation(NAMES)


def test_runs_are_found_where_they_are(tmp_path):
    write_seeds(tmp_path / "model" / "a", NAMES, seeds=(2021, 2022))
    write_seeds(tmp_path / "model" / "b", NAMES, seeds=(1,))
    a = tmp_path / "model" / "a"
    assert [r.path for r in load_group([a]).runs] == [a / "seed-2021", a / "seed-2022"]
    assert len(load_group([tmp_path]).runs) == 3
    assert len(load_group([a / "seed-2022"]).runs) == 1
    # the same run by another name counts once
    assert len(load_group([a, a / "seed-2021", a / ".." / "a"]).runs) == 2


def configured(path, **options):
    """A run whose config.toml says these."""
    config = resolve({"task": "rte", **options}).config
    write_run(path, REPORT, config=to_toml(config))


def test_groups_are_of_runs_that_differ_in_the_seed_alone(tmp_path):
    """And in where data and output are, and in what changes no number of their method."""
    configured(tmp_path / "a" / "1", seed=1, data="/")
    configured(tmp_path / "a" / "2", seed=2, output="elsewhere", log_every=3)
    unused = tmp_path / "a" / "2" / "config.toml"
    unused.write_text(re.sub(r"lambda_rank = .*", "lambda_rank = 12.0", unused.read_text()))
    reseal(tmp_path / "a" / "2")
    configured(tmp_path / "a" / "3", seed=3, lr=3.0)
    configured(tmp_path / "b" / "1", seed=1, target_rank=4)
    configured(tmp_path / "b" / "2", seed=5)
    found = [[r.path.relative_to(tmp_path) for r in g.runs] for g in load_groups([tmp_path])]
    assert [list(map(str, paths)) for paths in found] == [["a/1", "a/2", "b/2"], ["a/3"], ["b/1"]]


def test_runs_of_other_versions_are_grouped_too(tmp_path):
    written = {
        "1": "seed = 1\nnew = 2",
        "2": "seed = 2\nnew = 2",
        "3": "new = 3",
        # nobody knows what has an effect on an unknown method
        "4": 'method = "new"\ndelta_t = 1',
        "5": 'method = "new"\ndelta_t = 2',
    }
    for name, text in written.items():
        write_run(tmp_path / name, REPORT, config=text)
    assert [len(group.runs) for group in load_groups([tmp_path])] == [2, 1, 1, 1]
    (tmp_path / "1" / "config.toml").write_text("=")
    reseal(tmp_path / "1")
    with pytest.raises(RunDirError, match=r"config\.toml is corrupt"):
        load_groups([tmp_path])


def test_the_label_is_what_the_paths_share(tmp_path):
    a = write_seeds(tmp_path / "model" / "a", NAMES, seeds=(1, 2))
    write_seeds(tmp_path / "model" / "b", NAMES, seeds=(1,))
    assert load_group([a]).label == "a"
    assert load_group([a / "seed-1"]).label == "a/seed-1"
    assert load_group([a / "seed-1", a / "seed-2"]).label == "a"
    assert load_group([tmp_path]).label == "model"


def test_a_label_has_no_control_characters(tmp_path):
    path = write_seeds(tmp_path / "a\x1b[31mb", NAMES, seeds=(1, 2))
    assert load_group([path]).label == r"a\x1b[31mb"


def test_unfinished_runs_and_temporary_ones_are_left_out(tmp_path, caplog):
    write_seeds(tmp_path, NAMES)
    (tmp_path / "seed-2022" / "ranks.json").unlink()
    (tmp_path / "seed-2023").rename(tmp_path / ".seed-2023.old")
    assert [r.path.name for r in load_group([tmp_path]).runs] == ["seed-2021"]
    assert re.search("seed-2022 is left out: the run has not finished", caplog.text)
    with pytest.raises(RunDirError, match=r"ranks\.json is missing: the run has not finished"):
        load_group([tmp_path / "seed-2022"])


def test_what_is_no_run(tmp_path):
    with pytest.raises(RunDirError, match="nothing: no such directory"):
        load_group([tmp_path / "nothing"])
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="file: no such directory"):
        load_group([tmp_path / "file"])
    with pytest.raises(RunDirError, match="not a run directory, and there is no finished run"):
        load_group([tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1, "mat', "is corrupt"),
        (b"", "is corrupt"),
        (b"[]", "not a JSON object"),
        (b'{"schema": 2}', "rank report of schema 2, not 1"),
        (b"\xff\xfe", "is corrupt"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path, content, message):
    write_seeds(tmp_path, NAMES)
    (tmp_path / "seed-2022" / "ranks.json").write_bytes(content)
    reseal(tmp_path / "seed-2022")
    with pytest.raises(RunDirError, match=rf"seed-2022/ranks\.json.*{message}"):
        load_group([tmp_path])


def test_a_directory_in_place_of_the_file_is_named(tmp_path):
    run = write_run(tmp_path / "run", REPORT)
    run.ranks.unlink()
    run.ranks.mkdir()
    with pytest.raises(RunDirError, match=r"ranks\.json cannot be read"):
        load_group([run.path])


def test_a_run_without_adapters(tmp_path):
    write_run(tmp_path / "full", replace(constant(REPORT), budget=0, matrices=()))
    with pytest.raises(UserError, match="full: the run has no adapters"):
        load_group([tmp_path / "full"])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (allocation(names(3)), r"6 matrices .*only one of them, such as encoder\.layer\.2"),
        (allocation(names(2, DECODER)), "26 matrices"),
        (allocation(NAMES[:-1]), "1 matrices .*such as pooler"),
        (
            replace(REPORT, matrices=tuple(replace(m, in_features=9) for m in REPORT.matrices)),
            "16 x 8 in one, 16 x 9 in the other",
        ),
        (replace(REPORT, matrices=REPORT.matrices[::-1]), "in different orders"),
        (allocation(NAMES, init_rank=4), "starts with rank 3 in one, 4 in the other"),
    ],
)
def test_runs_that_differ_in_their_matrices(tmp_path, other, message):
    write_run(tmp_path / "one", REPORT)
    write_run(tmp_path / "two", other)
    with pytest.raises(UserError, match=message) as caught:
        load_group([tmp_path])
    assert f"{tmp_path / 'one'} and {tmp_path / 'two'} cannot be put together" in str(caught.value)


def test_initial_ranks_may_differ_in_a_comparison():
    run = RunDir(Path("x"))
    other = allocation(NAMES, init_rank=4)
    check_same((run, REPORT), (run, other), same_init_rank=False)
    found = between(group([REPORT]), group([other]))
    assert found.in_common == ()
    assert found.by_chance is None
    assert len(found.rank_correlation) == 1


def test_mixed_criteria_and_budgets_are_told(tmp_path, caplog):
    write_run(tmp_path / "a", REPORT)
    write_run(tmp_path / "b", allocation(NAMES, criterion="sensitivity", share=0.5))
    load_group([tmp_path])
    assert "differ in their criterion (snr, sensitivity)" in caplog.text
    assert "differ in their budget (26, 20)" in caplog.text
    caplog.clear()
    load_group([tmp_path / "a"])
    assert not caplog.text
