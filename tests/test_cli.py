"""The command line from outside: what is typed, printed, and returned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bayeslora_cli.cli import main

ROOT = Path(__file__).parents[1]


def bayeslora(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "bayeslora_cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd or ROOT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(backbone, rte, tmp_path_factory):
    """A finished run, made by the command line: (directory, what train printed)."""
    output = tmp_path_factory.mktemp("runs")
    done = bayeslora(
        "train", "--task", "rte", "--criterion", "snr", "--data", rte, "--model", backbone("bert"),
        "--output", output, "--max-steps", 6, "--batch-size", 16, "--device", "cpu",
        "--target-modules", "query,value,dense",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]), done


def test_train_prints_data_on_stdout_and_progress_on_stderr(run):
    directory, done = run
    assert directory.is_dir()
    printed = done.stdout.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["step", "best", "best_at_budget", "last"]
    assert "kept (67%), mean rank 2.00 of 11 matrices" in printed[-2]
    assert "schedule scaled from 3900 to 6 steps, --lr not: " in done.stderr
    assert "step 6/6" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_eval_reads_the_run_back(run):
    directory, _ = run
    done = bayeslora("eval", directory, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = json.loads((directory / "result.json").read_text())["best_at_budget"]["metrics"]
    assert found["metrics"]["validation"] == pytest.approx(expected["validation"], abs=1e-6)
    plain = bayeslora("eval", directory, "--split", "train", "--device", "cpu")
    assert plain.stdout.startswith("train accuracy 0.")
    assert plain.stdout.count("\n") == 1


def test_the_same_command_again_does_nothing(run, backbone, rte):
    directory, _ = run
    done = bayeslora(
        "train", "--task", "rte", "--criterion", "snr", "--data", rte, "--model", backbone("bert"),
        "--output", directory.parents[2], "--max-steps", 6, "--batch-size", 16, "--device", "cpu",
        "--target-modules", "query,value,dense",
    )  # fmt: skip
    assert done.returncode == 0
    assert "already trained" in done.stderr
    assert done.stdout.splitlines()[-1] == str(directory)


@pytest.fixture
def typed(monkeypatch, capsys):
    """Type a command in this process: (exit code, stdout, stderr)."""

    def run_it(*arguments):
        monkeypatch.setattr(sys, "argv", ["bayeslora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, *capsys.readouterr()

    return run_it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "rtee"], r"--task rtee: choose one of .* \(did you mean rte\?\)"),
        (["--task", "rte", "--optimizer", "adamw", "--criterion", "snr"], "--criterion snr: needs"),
        (["--task", "rte", "--data", "no-such"], "no-such"),
        (["--task", "rte", "--device", "gpu"], "--device gpu: use cpu, cuda"),
        (["--task", "rte", "--target-rank", "9", "--init-rank", "3"], "--target-rank 9: must not"),
        (["--task", "rte", "--t-init", "5", "--t-final", "5", "--max-steps", "6"], "--t-init 5"),
        (["--task", "rte", "--target-modules", "dens"], "--target-modules dens: no layer of bert"),
        (["--task", "rte", "--model", "no/such"], "--model no/such: cannot load the tokenizer"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_exit_2(
    arguments, message, backbone, rte, tmp_path, typed
):
    code, out, err = typed(
        "train", "--data", rte, "--model", backbone("bert"), "--output", tmp_path / "out",
        "--max-steps", 4, *arguments,
    )  # fmt: skip
    assert code == 2, err
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert out == ""
    assert not list((tmp_path / "out").rglob("*"))


def test_eval_of_what_is_no_run(tmp_path, typed):
    for path, message in ((tmp_path, "not a run directory"), (tmp_path / "x", "no such directory")):
        code, out, err = typed("eval", path)
        assert (code, out) == (2, "")
        assert message in err


def test_eval_of_a_split_without_labels(run, tmp_path, typed):
    directory, _ = run
    folder = tmp_path / "RTE"
    folder.mkdir()
    (folder / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tw1 w2\tw3\n")
    code, _, err = typed("eval", directory, "--split", "test", "--data", tmp_path)
    assert code == 2
    assert "no labels" in err


def test_version_and_help():
    assert bayeslora("--version").stdout.startswith("bayeslora 0.")
    done = bayeslora("train", "--help")
    assert done.returncode == 0
    options = (
        "task data model method optimizer criterion target-rank init-rank target-modules alpha "
        "epochs max-steps batch-size grad-accum lr warmup-steps max-length orth-reg t-init t-final "
        "delta-t ess train-samples seed precision device gradient-checkpointing output overwrite"
    )
    for option in options.split(" "):
        assert f"--{option}" in done.stdout, option
