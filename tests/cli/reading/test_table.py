"""`bayeslora table` and `bayeslora presets`, from outside."""

from __future__ import annotations

import json
import tomllib

import pytest

from bayeslora_cli.config.files.presets import list_presets
from tests.support.scored_runs import write_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_sweep(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("options", [[], ["--json"], ["--latex", "--at", "best"], ["--csv"]])
def test_the_table_is_what_eval_of_many_runs_prints(sweep, typed, options):
    found = typed("table", sweep, *options)
    assert found[0] == 0
    assert found[1]
    assert found == typed("eval", sweep, *options)


def test_one_run_is_a_table_as_well(sweep, typed):
    run = next(sweep.rglob("result.json")).parent
    code, out, _ = typed("table", run, "--json")
    assert code == 0
    assert len(json.loads(out)["rows"]) == 1


def test_what_does_not_go_together(sweep, typed):
    code, _, err = typed("table", sweep, "--json", "--csv")
    assert code == 2
    assert "--json and --csv" in err
    assert typed("table", sweep / "gone")[0] == 2


def test_presets_are_listed_or_one_is_printed(typed):
    code, out, _ = typed("presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(list_presets())
    assert typed("train", "--list-presets") == (0, out, "")
    code, out, _ = typed("presets", "mrpc", "--method", "lora")
    assert code == 0
    assert tomllib.loads(out)["lr"] == 0.0002
    code, _, err = typed("presets", "mrcp")
    assert code == 2
    assert "did you mean mrpc?" in err
    assert typed("presets", "mrpc", "--method", "dora")[0] == 2
