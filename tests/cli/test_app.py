"""The command line from outside: what is typed, printed, and returned."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from bayeslora_cli.cli.app import main
from bayeslora_cli.cli.train import train
from bayeslora_cli.config.files import presets
from bayeslora_cli.config.run_config import OPTIONS

ROOT = Path(__file__).parents[2]


def bayeslora(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bayeslora_cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, check=False,
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


def test_eval_reads_the_run_back(run, warm_process):
    directory, _ = run
    done = warm_process.bayeslora("eval", directory, "--json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = json.loads((directory / "result.json").read_text())["best_at_budget"]["metrics"]
    metrics = found["metrics"]["validation"]
    assert metrics.keys() - expected["validation"].keys() == {"ece", "brier"}
    assert {k: metrics[k] for k in expected["validation"]} == pytest.approx(
        expected["validation"], abs=1e-6
    )
    plain = warm_process.bayeslora("eval", directory, "--split", "train", "--device", "cpu")
    assert plain.stdout.startswith("train accuracy 0.")
    lines = plain.stdout.splitlines()
    assert lines[1] == ""
    assert lines[2].split() == ["classes", "rows", "precision", "recall", "f1"]


def test_the_same_command_again_does_nothing(run, backbone, rte, warm_process):
    directory, _ = run
    done = warm_process.bayeslora(
        "train", "--task", "rte", "--criterion", "snr", "--data", rte, "--model", backbone("bert"),
        "--output", directory.parents[2], "--max-steps", 6, "--batch-size", 16, "--device", "cpu",
        "--target-modules", "query,value,dense",
    )  # fmt: skip
    assert done.returncode == 0
    assert "already trained" in done.stderr
    assert done.stdout.splitlines()[-1] == str(directory)


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


# ---- the posterior's use


def test_eval_over_samples(run, typed, tmp_path):
    """Both columns, the warning, the diagram and its file; the same again, and as JSON."""
    directory, _ = run
    figure = tmp_path / "r.svg"
    command = ["eval", directory, "--samples", 2, "--seed", 3, "--device", "cpu"]
    _, out, err = typed_ok(typed, *command, "--reliability", figure)
    note = json.loads((directory / "result.json").read_text())["posterior"]["note"]
    assert err == f"warning: {note}\n"
    lines = out.splitlines()
    assert lines[0].split() == ["mean", "2", "samples"]
    assert lines[1] == "validation"
    assert [line.split()[0] for line in lines[2:6]] == ["accuracy", "nll", "ece", "brier"]
    assert re.fullmatch(
        r"posterior: h/h0 [\d.]+ to [\d.]+, sigma 95%/5% [\d.]+, snr against magnitude [\d.]+",
        lines[6],
    )
    assert lines[8].startswith("classes, over samples")
    assert lines.index("reliability on validation: # accuracy, | mean confidence") > 8
    assert lines[-1] == str(figure)
    assert figure.read_text().startswith("<?xml")

    _, again, _ = typed_ok(typed, *command, "--reliability", "-")
    assert again.splitlines() == lines[:-1]
    assert not Path("-").exists()
    _, out, _ = typed_ok(typed, *command, "--json")
    found = json.loads(out)
    for name, line in zip(("accuracy", "nll", "ece", "brier"), lines[2:6], strict=True):
        values = [found[at]["validation"][name] for at in ("metrics", "sampled")]
        assert line.split()[1:] == [f"{value:.4f}" for value in values]
    assert {k: found[k] for k in ("samples", "temperature", "seed", "ece_bins")} == {
        "samples": 2, "temperature": 1.0, "seed": 3, "ece_bins": 15,
    }  # fmt: skip
    assert "reliability" not in found
    assert "ood" not in found


def test_eval_of_rows_from_outside(run, typed, tmp_path):
    directory, _ = run
    path = tmp_path / "o.csv"
    path.write_text("sentence1,sentence2\nw1,w2\nw3 w4,w5\n")
    arguments = ["eval", directory, "--ood", path, "--device", "cpu"]
    _, out, _ = typed_ok(typed, *arguments)
    lines = out.splitlines()
    at = lines.index(f"AUROC, {path} against validation")
    assert re.fullmatch(r"  entropy +[01]\.\d{4}", lines[at + 1])
    _, out, _ = typed_ok(typed, *arguments, "--samples", 2)
    lines = out.splitlines()
    at = lines.index(f"AUROC, {path} against validation")
    assert re.fullmatch(r"  mutual_information +- +[01]\.\d{4}", lines[at + 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", 0], "--samples"),
        (["--samples", 2, "--temperature", -1], r"--temperature -1\.0: give a number of 0 or more"),
        (["--temperature", 2], r"--temperature 2\.0: .*give --samples S as well"),
        (["--temperature", 1], r"--temperature 1\.0: .*give --samples S as well"),
        (["--seed", 0], "--seed 0: .*give --samples S as well"),
        (["--split", "test", "--eval-file", "a.csv"], "--split test: --eval-file a.csv is read"),
        (["--reliability", "r.gif"], r"--reliability r\.gif: the suffix '\.gif'"),
        (["--ood", "ood"], "--ood ood: rte has no such split"),
        (["--ood", "README.md"], r"--ood README\.md: found a file with the suffix"),
    ],
)
def test_eval_as_it_cannot_be_asked(arguments, message, run, typed):
    directory, _ = run
    code, out, err = typed("eval", directory, "--device", "cpu", *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert "Traceback" not in err


# ---- one's own data


@pytest.fixture
def own(tmp_path, backbone):
    """Write files of one's own and type a command on them: own(command, {file: text}, ...)."""
    rows = [("w1 w2 w3", "ham"), ("w4 w5", "spam"), ("w6 w7", "eggs")]
    text = "".join(f'"{t} {w}",{label}\n' for w in ("w8", "w9", "w10") for t, label in rows)
    (tmp_path / "train.csv").write_text("text,kind\n" + text)
    (tmp_path / "dev.csv").write_text("text,kind\n" + text)
    return [
        "train", "--train-file", tmp_path / "train.csv", "--eval-file", tmp_path / "dev.csv",
        "--label-column", "kind", "--model", backbone("bert"), "--output", tmp_path / "out",
        "--max-steps", 3, "--batch-size", 4, "--device", "cpu",
    ]  # fmt: skip


def test_a_run_on_files_of_ones_own(own, typed, tmp_path, backbone):
    code, out, err = typed_ok(typed, *own)
    assert "9 training rows, 3 classes predicted from text" in err
    directory = Path(out.splitlines()[-1])
    assert directory.parent.name.startswith("train-adalora-ivon-snr-r2-")
    found = AutoConfig.from_pretrained(directory / "adapter", subfolder="backbone")
    assert found.id2label == {0: "eggs", 1: "ham", 2: "spam"}
    card = (directory / "README.md").read_text()
    assert "# train.csv with adalora" in card
    assert "the classes eggs, ham, spam" in card

    plain = tmp_path / "unlabelled.jsonl"
    plain.write_text('{"text": "w1 w2"}\n{"text": "w4"}\n')
    code, out, err = typed("eval", directory, "--eval-file", plain, "--device", "cpu")
    assert code == 2
    assert "--predictions FILE" in err
    written = tmp_path / "there" / "p.jsonl"
    _, out, _ = typed_ok(
        typed, "eval", directory, "--eval-file", plain, "--predictions", written, "--device", "cpu"
    )
    assert out.splitlines() == [str(written)]
    predicted = [json.loads(line) for line in written.read_text().splitlines()]
    assert [row["row"] for row in predicted] == [0, 1]
    for row in predicted:
        probabilities = {name: row[f"p({name})"] for name in ("eggs", "ham", "spam")}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert row["prediction"] == max(probabilities, key=probabilities.get)

    # the file that it was evaluated on, and other rows with labels
    _, out, _ = typed_ok(typed, "eval", directory, "--device", "cpu", "--json")
    result = json.loads((directory / "result.json").read_text())["best_at_budget"]
    expected = result["metrics"]["validation"]
    metrics = json.loads(out)["metrics"]["validation"]
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    _, again, _ = typed_ok(
        typed, "eval", directory, "--eval-file", tmp_path / "dev.csv", "--device", "cpu", "--json"
    )
    assert json.loads(again)["metrics"]["file"] == json.loads(out)["metrics"]["validation"]


def typed_ok(typed, *arguments):
    code, out, err = typed(*arguments)
    assert not code, err
    return code, out, err


def test_scores_of_ones_own(own, typed, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text("text,kind\nw1 w2,0.5\nw3,1.25\nw4 w5,-2\n")
    _, out, err = typed_ok(typed, *own, "--json", "--quiet")
    assert err == ""
    result = json.loads(out)
    assert result["outputs"] == 1
    assert result["last"]["metrics"]["validation"].keys() == {
        "pearson", "spearman", "pearson_spearman", "nll",
    }  # fmt: skip
    written = tmp_path / "p.csv"
    typed_ok(typed, "eval", result["run"], "--predictions", written, "--device", "cpu")
    rows = [line.split(",") for line in written.read_text().splitlines()]
    assert rows[0] == ["row", "prediction", "label"]
    assert [float(row[2]) for row in rows[1:]] == [0.5, 1.25, -2.0]


def test_other_classes_of_the_same_file_are_another_run(own, typed, tmp_path):
    typed_ok(typed, *own)
    text = (tmp_path / "train.csv").read_text()
    for name in ("train", "dev"):
        (tmp_path / f"{name}.csv").write_text(text.replace("spam", "bacon"))
    code, _, err = typed(*own)
    assert code == 2
    assert "other columns or classes" in err
    typed_ok(typed, *own, "--overwrite")


def test_training_rows_are_held_out_where_there_are_no_others(own, typed, tmp_path):
    """The run evaluates the rows that it has held out, wherever they stand in the file."""
    alone = [*own[:3], *own[5:], "--validation", "0.34"]
    _, out, err = typed_ok(typed, *alone, "--json")
    assert "3 of 9 training rows are held out to evaluate on (--validation 0.34)" in err
    assert "6 training rows, 3 classes" in err
    result = json.loads(out)
    assert result["training_rows"] == 6
    before = json.loads(typed_ok(typed, "eval", result["run"], "--json", "--device", "cpu")[1])
    kept = tmp_path / "kept.csv"
    typed_ok(
        typed, "eval", result["run"], "--split", "train", "--predictions", str(kept),
        "--device", "cpu",
    )  # fmt: skip
    assert len(kept.read_text().splitlines()) == 1 + 6  # none of those held out
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    more = ['"w1 w1 w1",ham', '"w2 w2",spam']
    (tmp_path / "train.csv").write_text("\n".join([header, *more, *reversed(rows)]) + "\n")
    _, out, _ = typed_ok(typed, "eval", result["run"], "--json", "--device", "cpu")
    before, again = (found["metrics"]["validation"] for found in (before, json.loads(out)))
    assert again == pytest.approx(before)
    code, _, err = typed("eval", result["run"], "--split", "train", "--device", "cpu")
    assert code == 2
    assert "train of custom has other rows or labels than at the training" in err
    (tmp_path / "train.csv").write_text("\n".join([header, *more, *rows[:5]]) + "\n")
    code, _, err = typed("eval", result["run"], "--device", "cpu")
    assert code == 2
    assert "of the 3 rows that were held out of training among 7 rows" in err


TABLE = "text,kind\nw1,a\nw2,b\n"


@pytest.mark.parametrize(
    ("name", "text", "arguments", "message"),
    [
        ("train.csv", "", [], "train.csv: the file is empty"),
        ("train.csv", "text,kind\n", [], "no rows below the header"),
        ("train.csv", TABLE + "w3,a,b\n", [], "train.csv, line 4: found 3 fields; expected 2"),
        ("train.csv", "text,kind\nw1,a\nw2,a\n", [], "only the label 'a'"),
        ("dev.csv", "text,kind\nw1,ham\nw2,c\n", [], "dev.csv, line 3: found the label 'c'"),
        ("train.csv", TABLE, ["--label-column", "kid"], "no column 'kid' .*but 'kind'"),
        ("train.csv", TABLE, ["--text-columns", "txt"], "no column 'txt' .*but 'text'"),
        ("train.csv", TABLE, ["--text-columns", "text,kind"], "another for the label"),
        ("train.csv", TABLE, ["--train-file", "no.csv"], "--train-file no.csv: no such file"),
        ("train.csv", TABLE, ["--train-file", "README.md"], "suffix '.md'"),
        ("train.csv", TABLE, ["--task", "rte"], "--train-file .*: not together with --task rte"),
        ("j.jsonl", '{"text": 3, "kind": "a"}\n{"text": "w", "kind": "b"}\n',
         ["--train-file", "j.jsonl"], "j.jsonl, line 1: found 3 in the column 'text'"),
    ],
)  # fmt: skip
def test_files_that_a_user_can_mend(own, typed, tmp_path, name, text, arguments, message):
    (tmp_path / "dev.csv").write_text(TABLE)
    (tmp_path / name).write_text(text)
    arguments = [tmp_path / a if a == "j.jsonl" else a for a in arguments]
    code, out, err = typed(*own, *arguments)
    assert code == 2, err
    assert re.search(message, err), err
    assert out == ""
    assert not (tmp_path / "out").exists()


# ---- what is printed


def test_dry_run_trains_nothing(own, typed, tmp_path):
    _, out, _ = typed_ok(typed, *own, "--dry-run")
    assert re.search(r"--max-steps +3 +command line", out)
    assert re.search(r"--lr +1\.0 +preset custom", out)
    assert re.search(r"--t-init +0 +preset custom, scaled", out)
    assert re.search(r"--alpha +32\.0 +preset custom\n", out)
    assert "Nothing was trained." in out
    assert not (tmp_path / "out").exists()
    assert "--gpu-memory" not in out  # small enough for any
    _, out, _ = typed_ok(typed, *own, "--dry-run", "--json")
    assert json.loads(out)["steps"] == 3
    for arguments, message in (
        (["--gpu-memory", 8], "--gpu-memory 8: only together with --dry-run"),
        (["--dry-run", "--gpu-memory", -1], "--gpu-memory -1: must be above 0"),
    ):
        code, _, err = typed(*own, *arguments)
        assert code == 2
        assert message in err


def test_json_is_all_there_is_on_stdout(own, typed):
    _, out, _ = typed_ok(typed, *own, "--json")
    result = json.loads(out)
    stored = json.loads((Path(result.pop("run")) / "result.json").read_text())
    assert result == stored


def test_verbosity(own, typed):
    idle = ["--ess-per-example", 2, "--optimizer", "adamw"]
    _, _, err = typed_ok(typed, *own, *idle, "--quiet")
    assert err == "warning: --ess-per-example has no effect with --optimizer adamw\n"


def test_presets_are_listed(typed):
    _, out, _ = typed_ok(typed, "train", "--list-presets")
    assert [line.split()[0] for line in out.splitlines()] == list(presets.list_presets())


def test_a_submission_is_for_glues_test_splits(run, typed, tmp_path):
    directory, _ = run
    code, _, err = typed("eval", directory, "--submission", tmp_path / "s", "--device", "cpu")
    assert code == 2
    assert "--split test" in err
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "test.tsv").write_text("index\tsentence1\tsentence2\n0\tw1 w2\tw3\n")
    typed_ok(
        typed, "eval", directory, "--split", "test", "--data", tmp_path, "--submission",
        tmp_path / "s", "--device", "cpu",
    )  # fmt: skip
    lines = (tmp_path / "s" / "RTE.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert lines[1] in ("0\tentailment", "0\tnot_entailment")


def test_a_check_on_random_tokens_reads_no_data(run, typed):
    directory, _ = run
    for option in ("--data", "--eval-file"):
        code, _, err = typed(
            "export", directory, "--format", "lora", "--check-inputs", "random", option, "/nope"
        )
        assert code == 2
        assert f"{option} /nope: not together with --check-inputs random" in err


def test_a_run_without_its_result_says_so(run, typed, tmp_path):
    directory, _ = run
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "result.json").write_text("{}")
    for command in (["eval", "--samples", 2], ["export", "--format", "lora"]):
        code, _, err = typed(*command, copy, "--device", "cpu")
        assert code == 2, err
        assert "result.json is corrupt" in err


def test_every_option_of_a_run_can_be_typed():
    """And every one that can be typed is an option of a run, or says what is printed."""
    typed_names = set(inspect.signature(train).parameters)
    others = {
        "preset", "list_presets", "dry_run", "as_json", "quiet", "verbose", "seeds", "jobs",
        "print_commands", "gpu_memory", "ctx",
    }  # fmt: skip
    assert typed_names - others == OPTIONS.keys() - {"schedule_steps"}


def test_version_and_help():
    assert bayeslora("--version").stdout.startswith("bayeslora 0.")
    done = bayeslora("train", "--help-all")
    assert done.returncode == 0
    options = (
        "task data model method optimizer criterion target-rank init-rank target-modules alpha "
        "epochs max-steps batch-size grad-accum lr warmup-steps max-length orth-reg t-init t-final "
        "delta-t ess train-samples seed precision device gradient-checkpointing output overwrite"
    )
    for option in options.split(" "):
        assert f"--{option}" in done.stdout, option


def test_a_terminal_without_a_size_is_printed_on(monkeypatch, capsys):
    """COLUMNS=0 printed nothing."""
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr(sys, "argv", ["bayeslora", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert "COLUMNS" not in os.environ
    assert capsys.readouterr().out.startswith("bayeslora ")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "5"}, "5"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_spin_briefly_unless_the_user_says_otherwise(given, found, monkeypatch):
    monkeypatch.setattr(os, "environ", {"COLUMNS": "100", **given})
    monkeypatch.setattr(sys, "argv", ["bayeslora", "--version"])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert os.environ.get("GOMP_SPINCOUNT") == found
