"""Models and runs on tasks of multiple choice, against loops over transformers' own logits."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bayeslora_cli as bl
from bayeslora_cli.errors import ModelError, NonFiniteError, UserError
from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.sources.choice_tasks.choice_task import TASKS, load_choices
from bayeslora_cli.tasks.sources.choice_tasks.questions import choices_from_text
from tests.support.chats import byte_tokenizer
from tests.support.decoders import save_decoder
from tests.tasks.sources.choice_tasks.files import write_arc, write_mmlu

SETTINGS = {
    "max_steps": 4, "batch_size": 4, "max_length": 64, "t_init": 1, "t_final": 1, "delta_t": 1,
    "lr": 0.01, "lr_schedule": "linear", "warmup_steps": 0, "device": "cpu",
}  # fmt: skip


def save_model(directory, kind="llama", **sizes):
    """A random decoder of bytes, and of letters with the space before them."""
    tokenizer = byte_tokenizer(words=(" A", " B", " C", " D"))
    save_decoder(
        directory, kind, vocab_size=len(tokenizer), max_position_embeddings=600,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_mmlu(write_arc(tmp_path_factory.mktemp("data"), train=12)))


@pytest.fixture(scope="module")
def run(model, data, tmp_path_factory):
    """adalora with IVON on ARC-Easy, whose training rows give a validation split."""
    output = str(tmp_path_factory.mktemp("runs"))
    return bl.train(task="arc-easy", data=data, model=model, output=output, **SETTINGS)


def log_likelihoods(model, examples):
    """Of each choice: the sum over its tokens, a forward pass each, and its bytes."""
    module = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = []
    for text, choices in zip(examples.first, examples.second, strict=True):
        prompt, own = "".join(turn.text for turn in from_text(text)), []
        for choice in choices_from_text(choices):
            before = tokenizer(prompt + choice.given)["input_ids"]
            ids = torch.tensor([tokenizer(prompt + choice.given + choice.text)["input_ids"]])
            with torch.no_grad():
                logits = module(ids).logits[0].log_softmax(-1)
            aims = ids[0, len(before) :]
            places = torch.arange(len(before) - 1, ids.shape[1] - 1)
            own.append((float(logits[places, aims].double().sum()), len(choice.text) - 1))
        found.append(own)
    return found


@pytest.mark.parametrize(
    ("name", "form", "shots"),
    [("arc-easy", "answers", 0), ("arc-easy", "letters", 2), ("mmlu", None, 3)],
)
def test_a_model_without_a_run(model, data, name, form, shots):
    found = bl.evaluate(model, task=name, choices=form, shots=shots, data=data, device="cpu")
    task = TASKS[name].scored_as(form)
    rows = load_choices(task, Path(data), ("test",), shots=shots)["test"]
    shares = found.predictions["test"]
    right = right_norm = 0
    for row, (own, label) in enumerate(zip(log_likelihoods(model, rows), rows.labels, strict=True)):
        sums, sizes = map(torch.tensor, zip(*own, strict=True))
        assert shares[row, : len(own)].tolist() == pytest.approx(
            sums.softmax(-1).tolist(), abs=1e-5
        )
        assert shares[row, len(own) :].abs().sum() == 0
        right += int(sums.argmax()) == label
        right_norm += int((sums / sizes).argmax()) == label
    metrics = found.metrics["test"]
    assert metrics["accuracy"] == pytest.approx(right / len(rows))
    if "accuracy_norm" in metrics:
        assert metrics["accuracy_norm"] == pytest.approx(right_norm / len(rows))
    assert (found.facts["task"], found.facts["shots"]) == (name, shots)


def test_a_broken_model_is_no_guess(model, data, tmp_path, typed):
    """Log-likelihoods that are no numbers would make the first choice the likeliest."""
    broken = AutoModelForCausalLM.from_pretrained(model)
    broken.lm_head.weight.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match="its weights are damaged"):
        bl.evaluate(tmp_path, task="mmlu", data=data, device="cpu")
    code, _, err = typed(
        "eval",
        "--model",
        tmp_path,
        "--task",
        "mmlu",
        "--data",
        data,
        "--device",
        "cpu",
    )
    assert code == NonFiniteError.exit_code
    (said,) = (line for line in err.splitlines() if "error" in line.lower())
    assert "a prediction is not finite: its weights are damaged" in said


def test_a_model_of_experts_is_evaluated_as_it_is(data, tmp_path, caplog):
    """Without adapters, so that nothing is to be said of layers that are not adapted."""
    save_model(tmp_path, "mixtral", num_local_experts=2)
    caplog.set_level("INFO")
    found = bl.evaluate(tmp_path, task="mmlu", data=data, device="cpu")
    assert "adapted" not in caplog.text
    assert 0 <= found.metrics["test"]["accuracy"] <= 1


def test_groups(model, data):
    groups = bl.evaluate(model, task="mmlu", data=data, device="cpu").facts["groups"]
    found = groups["mean"]["test"]
    assert list(found) == ["humanities", "humanities/philosophy", "stem", "stem/astronomy"]
    assert [group["rows"] for group in found.values()] == [3] * 4
    assert found["stem"] == found["stem/astronomy"]


def test_a_run_holds_out_rows_and_is_evaluated(run, data, tmp_path):
    assert run.task.objective == "choice"
    assert run.task.held_out
    assert {"accuracy", "accuracy_norm", "nll"} <= run.metrics["validation"].keys()
    again = run.evaluate()
    for name, value in run.metrics["validation"].items():
        assert again.metrics["validation"][name] == pytest.approx(value, abs=1e-6)
    path = tmp_path / "p.csv"
    test = run.evaluate("test", samples=2, predictions=path, reliability=True)
    assert {"ece", "brier"} <= test.sampled["test"].keys()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 4
    assert {"prediction", "label", "p(E)", "entropy", "mutual_information"} <= rows[0].keys()
    assert len(run.evaluate("train").predictions["train"]) + len(run.task.held_out) == 12


def test_uncertainty_against_another_task(run):
    found = run.evaluate("test", samples=2, ood="mmlu").ood
    assert found["rows"] == 6
    assert set(found["sampled"]["test"]) == {"entropy", "mutual_information"}


def test_a_run_on_another_task(run, data):
    found = run.evaluate(task="mmlu", shots=1, samples=2)
    assert found.facts["split"] == "test"
    assert set(found.sampled["test"]) >= {"accuracy", "nll", "ece", "brier"}
    assert set(found.facts["groups"]) == {"mean", "sampled"}
    with pytest.raises(UserError, match="--shots 1: it is for --task NAME"):
        run.evaluate(shots=1)
    with pytest.raises(UserError, match=r"--task mmul.*did you mean mmlu"):
        run.evaluate(task="mmul")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 1}, "--shots 1: it is for --task NAME"),
        ({"choices": "letters"}, "--choices letters: it is for --task NAME"),
        ({"split": "test"}, "--split test: --eval-file f.csv is read instead"),
        ({"data": "d"}, "--data d: --eval-file f.csv is read instead"),
    ],
)
def test_options_of_tasks_are_not_for_files(options, message):
    with pytest.raises(UserError, match=message):
        bl.evaluate("m", file="f.csv", **options)


def test_texts_without_choices_are_refused(run):
    with pytest.raises(UserError, match="--ood sst2: its rows are of another form than"):
        run.evaluate("test", ood="sst2")
    with pytest.raises(UserError, match=r"predict: the rows of .* are more than texts"):
        run.predict([("a", "b")])


def test_rows_of_ones_own(model, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"{k}?", "choices": ["a", "b", "c"][: 2 + k % 2], "answer": 0})
            + "\n"
            for k in range(6)
        )
    )
    run = bl.train(
        train_file=str(path), eval_file=str(path), model=model, output=str(tmp_path), **SETTINGS
    )
    assert run.task.classes == ("A", "B", "C")
    found = run.evaluate().predictions["validation"]
    assert found.shape == (6, 3)
    assert found[0, 2] == 0
    assert bl.evaluate(model, file=path, device="cpu").predictions["file"].shape == (6, 3)


def test_the_command(model, data, typed):
    code, out, err = typed(
        "eval", "--model", model, "--task", "mmlu", "--data", data, "--device", "cpu"
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("test accuracy ")
    assert lines[2].split() == ["test", "rows", "accuracy", "nll", "ece"]
    assert lines[4].startswith("  philosophy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "RUN: name a run's directory, or a pretrained model by --model"),
        (["--model", "m"], "give --task NAME"),
        (["--model", "m", "--task", "rte"], "no task of multiple choice"),
        (["--model", "m", "--task", "mmlu", "--samples", "2"], "--samples: it is for a run"),
    ],
)
def test_options_that_do_not_fit(options, message, typed):
    code, _, err = typed("eval", *options)
    assert code
    assert message in " ".join(err.split())


def test_an_encoder_is_not_told_of_an_option_without_effect(backbone, data, tmp_path):
    with pytest.raises(ModelError, match=r"choose a causal language model$"):
        bl.train(task="arc-easy", data=data, model=backbone("bert"), output=str(tmp_path),
                 **SETTINGS)  # fmt: skip
