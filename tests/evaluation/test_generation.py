"""Prompts are continued as transformers continues them with the merged model."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import bayeslora_cli as bl
from bayeslora_cli.errors import UserError
from tests.support.chat_runs import chat_run
from tests.support.smollm import SMOLLM, needs_smollm

PROMPTS = ["say a", "say the"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return chat_run(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def merged(run):
    return run.export("merged", check_inputs="random").path


def continued(model, tokenizer, prompt, *, chat=True):
    """By transformers alone."""
    messages = [{"role": "user", "content": prompt}]
    ids = (
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        if chat
        else tokenizer(prompt, return_tensors="pt")
    )["input_ids"]
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=2)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("chat", [True, False])
def test_at_the_mean_it_is_the_merged_model(chat, run, merged):
    model = AutoModelForCausalLM.from_pretrained(merged)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    found = run.generate(PROMPTS, max_new_tokens=8, chat=None if chat else False)
    assert [g.prompt for g in found] == PROMPTS
    for generation in found:
        assert generation.texts == (continued(model, tokenizer, generation.prompt, chat=chat),)
        assert len(generation.finished) == 1


def test_samples_and_drawn_tokens_repeat_by_their_seed(run):
    def texts(**options):
        found = run.generate(PROMPTS, max_new_tokens=8, **options)
        return [generation.texts for generation in found]

    several = texts(samples=3, seed=5)
    assert [len(found) for found in several] == [3, 3]
    assert several == texts(samples=3, seed=5)
    drawn = texts(temperature=1.5, seed=5)
    assert drawn == texts(temperature=1.5, seed=5)
    assert drawn != texts(temperature=1.5, seed=6)
    assert texts() == texts()  # the mean is as before


def test_a_model_without_a_run_is_the_merged_one(run, merged):
    found = bl.generate(merged, PROMPTS, max_new_tokens=8, device="cpu")
    assert found == run.generate(PROMPTS, max_new_tokens=8)
    system = bl.generate(merged, PROMPTS, max_new_tokens=8, device="cpu", system="be good")
    assert system != found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "say a"}, "give a list"),
        ({"prompts": []}, "give a list"),
        ({"prompts": ["say " + 20 * " the"]}, "--prompt 'say .*': it has .* model takes 64 with"),
        ({"system": "x", "chat": False}, "--system: it is for"),
    ],
)
def test_what_cannot_be(options, message, run):
    with pytest.raises(UserError, match=message):
        run.generate(options.pop("prompts", PROMPTS), **options)


def test_the_models_own_settings_are_put_aside(run):
    expected = run.generate(PROMPTS, max_new_tokens=8)
    settings = run.loaded.network.module.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 1
    try:
        assert run.generate(PROMPTS, max_new_tokens=8) == expected
        assert run.loaded.network.module.generation_config is settings
    finally:
        settings.repetition_penalty = settings.no_repeat_ngram_size = None


def test_a_text_ends_where_the_positions_do(run):
    (found,) = run.generate(["say the"], chat=False)
    assert len(found.texts[0]) > 40


def test_a_classifier_says_no_text(backbone, rte, tmp_path):
    run = bl.train(task="rte", data=rte, model=backbone("bert"), max_steps=2, output=str(tmp_path),
                   device="cpu", method="lora")  # fmt: skip
    with pytest.raises(UserError, match="generate: the run on rte predicts a class, not text"):
        run.generate(PROMPTS)


# ---- the command


@pytest.fixture
def typed(typed):
    """Type `bayeslora generate ...`."""
    return partial(typed, "generate")


def test_the_command(run, typed):
    common = (run.path, "--max-new-tokens", 8, "--device", "cpu")
    answers = [g.texts[0] for g in run.generate(PROMPTS, max_new_tokens=8)]
    code, out, err = typed(*common, "--prompt", "-", "--json", stdin="say a\n")
    assert code == 0
    found = json.loads(out)
    assert found["generations"][0]["prompt"] == "say a"
    assert found["generations"][0]["texts"] == answers[:1]
    assert (found["temperature"], found["samples"], found["seed"]) == (0, None, 0)
    code, out, err = typed(*common, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--samples", 2)
    assert code == 0
    assert out.count("--- sample 2") == 2
    assert "> say a" in out
    assert "texts are cut off at --max-new-tokens 8" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("RUN",), "--prompt TEXT is missing"),
        (("--prompt", "x"), "name a finished run, or a model by --model"),
        (("--prompt", "x", "--model", "m", "--samples", "2"), "--samples 2: it is for a finished"),
        (("RUN", "--prompt", "x", "--precision", "bf16"), "--precision bf16: a run computes"),
        (("RUN", "--prompt", "-", "--prompt", "-"), "standard input can be read only once"),
        (("RUN/none", "--prompt", "x"), "none: no such"),
    ],
)
def test_what_cannot_be_typed(words, message, run, typed):
    code, _, err = typed(*(word.replace("RUN", str(run.path)) for word in words))
    assert code == 2
    assert message in err


@needs_smollm
@pytest.mark.realmodel
def test_smollm_knows_the_capital_of_france():
    (found,) = bl.generate(
        SMOLLM, ["What is the capital of France?"], max_new_tokens=12, device="cpu"
    )
    assert found.texts == ("The capital of France is Paris.",)
    assert found.finished == (True,)
