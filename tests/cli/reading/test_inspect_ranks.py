"""`bayeslora inspect-ranks` from outside: options, forms, faults, terminals."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bayeslora_cli.cli.reading.inspect_ranks import _print_csv
from bayeslora_cli.reports.ranks.run_groups import load_group
from bayeslora_cli.reports.ranks.views import Ranks
from tests.support.ranked_runs import allocation, constant, names, write_run, write_seeds

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "datasets", "sklearn", "scipy", "matplotlib")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs")
    for criterion in ("snr", "sensitivity"):
        write_seeds(path / criterion, names(2), criterion=criterion)
    write_run(path / "other" / "seed-1", allocation(names(3)))
    write_run(path / "lora" / "seed-1", constant(allocation(names(2), share=1)))
    return path


@pytest.fixture
def typed(typed):
    """Type `bayeslora inspect-ranks ...`."""
    return partial(typed, "inspect-ranks")


def other_process(*arguments, **environ):
    """stdout's bytes, of a process with nothing but these variables, PATH and PYTHONPATH."""
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH", "HOME")}
    done = subprocess.run(
        [sys.executable, "-m", "bayeslora_cli", "inspect-ranks", *map(str, arguments)],
        capture_output=True, cwd=ROOT, check=False, env=kept | environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# ---- the forms


@pytest.mark.parametrize(
    ("options", "view", "keys"),
    [
        ([], "ranks", ["matrices", "agreement"]),
        (["--history"], "history", ["steps", "budget", "matrices"]),
        (
            ["--scores"],
            "scores",
            ["thresholds", "misplaced", "quantiles", "histogram", "zeros", "posterior"],
        ),
    ],
)
def test_json(runs, typed, options, view, keys):
    code, out, err = typed(runs / "snr", "--json", *options)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert list(found) == ["schema", "view", "groups", *keys]
    assert (found["schema"], found["view"]) == (1, view)
    (group,) = found["groups"]
    assert (group["label"], group["kept"], group["initial"]) == ("snr", 26, 39)
    assert group["runs"][0] == {
        "path": str(runs / "snr" / "seed-2021"), "step": 99, "budget": 26, "criterion": "snr",
    }  # fmt: skip


def test_compare(runs, typed):
    """The flag anywhere; the first minus the second."""
    code, out, err = typed("--compare", runs / "sensitivity", runs / "snr" / "seed-2021", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [group["label"] for group in found["groups"]] == ["sensitivity", "snr/seed-2021"]
    assert list(found)[3:] == ["matrices", "agreement"]
    assert typed(runs / "sensitivity", runs / "snr" / "seed-2021", "--json", "--compare")[1] == out
    code, out, _ = typed("--compare", runs / "sensitivity", runs / "snr")
    assert code == 0
    assert out.startswith("A: sensitivity, 3 runs, 100 steps, criterion sensitivity\nB: snr, 3 ")
    # constant ranks may be one of the two
    code, out, _ = typed("--compare", runs / "lora", runs / "snr")
    assert code == 0


@pytest.mark.parametrize(
    ("options", "rows"), [([], 13), (["--scores"], 3 * 39), (["--history"], None)]
)
def test_csv(runs, typed, options, rows):
    code, out, err = typed(runs / "snr", "--csv", *options)
    assert (code, err) == (0, "")
    assert "\r" not in out
    found = list(csv.DictReader(io.StringIO(out)))
    assert len(found) == (rows or len(found))
    assert all(None not in row and None not in row.values() for row in found)


def test_a_figure_beside_what_is_printed(runs, typed, tmp_path):
    path = tmp_path / "ranks.svg"
    code, out, err = typed(runs / "snr", "--json", "--output", path)
    assert code == 0
    json.loads(out)
    assert err == f"wrote {path}\n"
    assert path.is_file()


# ---- faults


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing: no such directory"),
        (["snr", "other"], "cannot be put together"),
        (["snr", "lora", "--history"], "are constant"),
        (["lora", "--scores"], "lora/seed-1 has none"),
        (["--compare", "snr"], "--compare: give two RUNs, not 1"),
        (["--compare", "snr", "snr", "snr"], "--compare: give two RUNs, not 3"),
        (["--compare", "snr", "other"], "cannot be put together"),
        (["--compare", "--history", "snr", "snr"], "--compare and --history: each is another view"),
        (["--scores", "--history", "snr"], "--history and --scores: each is another view"),
        (["snr", "--json", "--csv"], "--json and --csv: both go to stdout"),
        (["snr", "--output", "a.jpg"], "--output a.jpg: the suffix"),
        (["nothing", "--output", "a.png"], "nothing: no such directory"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_2(
    runs, arguments, message, typed, monkeypatch
):
    monkeypatch.chdir(runs)
    before = sorted(runs.rglob("*"))
    code, out, err = typed(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error: ") == 1
    assert "Traceback" not in err
    assert sorted(runs.rglob("*")) == before


def test_a_warning_does_not_go_among_the_data(runs, typed):
    code, out, err = typed(runs / "snr", runs / "sensitivity", "--json", "--history")
    assert code == 0
    assert "warning: the runs differ in their criterion (snr, sensitivity)" in err
    assert len(json.loads(out)["groups"][0]["runs"]) == 6


def test_a_sweep_is_a_heatmap_a_method(runs, typed, tmp_path):
    """The mean over seeds of each, in the terminal, in JSON, in csv, and in one figure."""
    figure = tmp_path / "all.pdf"
    code, out, err = typed(runs / "snr", runs / "sensitivity", "--output", figure)
    assert (code, err) == (0, f"wrote {figure}\n")
    assert re.findall(r"^(\S+), 3 runs", out, re.MULTILINE) == ["snr", "sensitivity"]
    found = json.loads(typed(runs / "snr", runs / "sensitivity", "--json")[1])
    assert (found["view"], len(found["panels"])) == ("panels", 2)
    assert [len(group["runs"]) for group in found["groups"]] == [3, 3]
    alone = [json.loads(typed(runs / name, "--json")[1]) for name in ("snr", "sensitivity")]
    assert [p["matrices"] for p in found["panels"]] == [a["matrices"] for a in alone]
    rows = list(csv.DictReader(io.StringIO(typed(runs / "snr", runs / "sensitivity", "--csv")[1])))
    assert [row["label"] for row in rows] == ["snr"] * 13 + ["sensitivity"] * 13


# ---- terminals


def test_it_imports_nothing_heavy(runs):
    program = (
        "import sys\nfrom bayeslora_cli.cli.app import main\n"
        f"sys.argv = ['bayeslora', 'inspect-ranks', {str(runs / 'snr')!r}, *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)\n"
    )
    for option in ([], ["--history"], ["--scores"], ["--json"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *option], capture_output=True, text=True, cwd=ROOT,
            check=True,
        )  # fmt: skip
        assert done.stderr.split() == []


def test_a_pipe_gets_plain_lines(runs):
    group = load_group([runs / "snr"])
    plain = Ranks(group=group).draw(width=80, colour=False, unicode=True).plain + "\n"
    assert other_process(runs / "snr", LC_ALL="C.UTF-8", TERM="xterm").decode() == plain
    assert other_process(runs / "snr", LC_ALL="C.UTF-8", NO_COLOR="1").decode() == plain


def test_a_terminal_without_unicode_gets_ascii(runs):
    for options in ([], ["--history"], ["--scores"]):
        out = other_process(runs / "snr", *options, PYTHONIOENCODING="ascii")
        assert all(byte == 10 or 32 <= byte < 127 for byte in out)


@pytest.mark.parametrize(("name", "code"), [("truecolor", b"2"), ("256color", b"5")])
@pytest.mark.parametrize("options", [[], ["--history"], ["--scores"]])
def test_terminals_get_their_colours(runs, name, code, options):
    """The same text with nothing but colours in it."""
    out = other_process(
        runs / "snr", *options, FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="100",
        COLORTERM=name if name == "truecolor" else "", LC_ALL="C.UTF-8",
    )  # fmt: skip
    assert set(re.findall(rb"[34]8;([25]);", out)) == {code}
    bare = re.sub(rb"\x1b\[[0-9;]*m", b"", out)
    assert b"\x1b" not in bare
    assert "W_q" in bare.decode()


def test_wide_terminals_are_used(runs):
    def longest(columns):
        out = other_process(runs / "snr", "--history", COLUMNS=str(columns), LC_ALL="C.UTF-8")
        return max(len(line) for line in out.decode().splitlines() if "," not in line)

    assert 60 < longest(80) <= 80
    assert 160 < longest(200) <= 200


def test_runs_with_and_without_widths_make_one_table(capsys):
    """B-LoRA's rows have more columns, and stood after others in a traceback."""
    _print_csv(iter([{"name": "a", "rank": 2}, {"name": "b\x1b[31m", "rank": 3, "bits_h": 4.0}]))
    assert capsys.readouterr().out == "name,rank,bits_h\na,2,\nb\\x1b[31m,3,4.0\n"
