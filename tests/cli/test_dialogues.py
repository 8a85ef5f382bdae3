"""Files of chats, as a user types them: what is found, shown, trained and refused."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bayeslora_cli.training.plan import RESERVED
from tests.support.chats import STRICT, byte_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with a tokenizer of bytes and a chat template that wants roles to alternate."""
    directory = tmp_path_factory.mktemp("chat") / "tiny-chat"
    tokenizer = byte_tokenizer(STRICT)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24,
        num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture
def own(tmp_path, model):
    """Write chats, three of them with a prompt that leaves no room; the command on them."""
    rows = [chat(f"{n} and 1?", f"{n + 1}.") for n in range(17)]
    rows += [chat(letter * 80, "y") for letter in "abc"]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return [
        "train", "--train-file", path, "--model", model, "--output", tmp_path / "out",
        "--max-steps", 3, "--batch-size", 4, "--max-length", 48, "--device", "cpu",
    ]  # fmt: skip


def test_a_dry_run_shows_what_counts(own, typed):
    code, out, err = typed(*own, "--dry-run")
    assert code == 0, err
    assert "found chats in the column messages, and what the assistant says counts" in err
    assert re.search(r"\d of 18 rows of train are left out.*line (18|19|20), for one", err)
    assert re.search(r"--max-length +48 +command line", out)
    assert re.search(r"--epochs +3.0 +preset causal", out)
    data = out[out.index("\nData\n") : out.index("\nAdapted matrices")]
    assert re.search(r"train +1[5-7] rows\n +validation +2 rows", data)
    assert re.search(r"no loss in train +\d rows, which are left out", data)
    assert re.search(r"packing +no padding: \d+% fewer tokens than in padded batches", data)
    assert re.search(r"<\|user\|>\n  (\d+) and 1\?<\|end\|>\n  <\|assistant\|>\n  \[\[", data)
    assert re.search(r"\[\[\d+\.<\|end\|>\]\]", data)
    assert all(len(line) <= 80 for line in data.splitlines())
    assert "Whether it fits on a GPU of 80 GiB, and what would: --gpu-memory 80" in out


def test_a_dry_run_for_a_gpu_that_is_not_here(own, typed):
    """Its memory is enough for some ways to save it, and the fastest of these is named."""
    found = {}
    for size in (0.5, 80):
        code, out, err = typed(*own, "--dry-run", "--gpu-memory", size, "--json")
        assert code == 0, err
        found[size] = json.loads(out)
    assert found[80]["fits"]
    assert not found[0.5]["fits"]
    assert found[0.5]["cheapest_that_fits"] is None
    sizes = [way["bytes"] for way in found[80]["ways_to_save_memory"]]
    assert min(sizes) < found[80]["peak_bytes"]
    room = (min(sizes) + RESERVED) / 2**30
    _, out, _ = typed(*own, "--dry-run", "--gpu-memory", room)
    assert re.search(r"more than the GPU has for tensors, 0.0 GiB. The fastest that fits: --", out)
    assert "A CPU's pass, as no GPU is here" in out


def test_a_run_on_chats_evaluates_what_it_held_out(own, typed, tmp_path):
    code, out, err = typed(*own, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert 15 <= result["training_rows"] <= 17
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    code, out, err = typed("eval", result["run"], "--json", "--device", "cpu")
    assert code == 0, err
    found, best = json.loads(out)["metrics"]["validation"], result["best_at_budget"]["metrics"]
    assert found["nll"] == pytest.approx(best["validation"]["nll"], abs=1e-4)
    more = json.dumps({"messages": chat("new?", "yes")}) + "\n"
    path.write_text(path.read_text() + more)
    code, _, err = typed(*own)
    assert code == 2
    assert re.search("other rows|rows or labels of its data are others now", err), err


@pytest.mark.parametrize(
    ("row", "arguments", "message"),
    [
        ({"messages": chat("a", "b")[::-1]}, [], r"chats\.jsonl, line 21: roles are out of order"),
        (
            {"messages": [*chat("a", "b")[:1], *chat("c", "d")]},
            [],
            r"chats\.jsonl, line 21: the chat template of .* refuses .* must alternate",
        ),
        ({"messages": []}, [], r"chats\.jsonl, line 21: .* expected a list of messages"),
        ({"messages": chat("a", "b")}, ["--max-length", "9"], "nothing of this or any other row"),
        (
            {"messages": chat("a", "b")},
            ["--task-type", "choice"],
            "none with rows for --task-type choice; expected question, choices and answer",
        ),
        ({"messages": chat("a", "b")}, ["--validation", "0"], "--validation 0.0: must be above 0"),
    ],
)
def test_what_is_refused_is_one_message(own, typed, tmp_path, row, arguments, message):
    path = tmp_path / "chats.jsonl"
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    code, out, err = typed(*own, *arguments)
    assert code == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, " ".join(err.split())), err
    assert out == ""


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_encoders_predict_no_next_tokens(own, typed, backbone, kind):
    code, _, err = typed(*own, "--model", backbone(kind))
    assert code == 2
    assert re.search("reads rows in both directions|does not predict next tokens", err)
