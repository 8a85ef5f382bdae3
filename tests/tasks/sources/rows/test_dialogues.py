"""Rows of turns are read from the forms that people have, and what is amiss with them."""

from __future__ import annotations

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import Turn, from_text
from bayeslora_cli.tasks.sources.own_files import own_examples
from bayeslora_cli.tasks.sources.rows.dialogues import DIALOGUES
from bayeslora_cli.tasks.sources.table_reader import read_table

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
TURNS = (Turn("user", "Hi", False), Turn("assistant", "Hello.", True))


def read(path, *, asked=None, loss_on="completions", labelled=True):
    table = read_table(str(path), "--train-file", split="train")
    columns = DIALOGUES.columns(table, asked)
    if columns is None:
        return None
    found = DIALOGUES.read(table, columns, loss_on=loss_on, labelled=labelled)
    return [from_text(text) for text in found.first]


def lines(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": HI}, TURNS),
        ({"messages": HI, "id": 3, "text": "x"}, TURNS),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello."},
                ]
            },
            TURNS,
        ),
        ({"prompt": "2+2=", "completion": "4"}, (Turn("", "2+2=", False), Turn("", "4", True))),
        ({"prompt": HI[:1], "completion": HI[1:]}, TURNS),
        (
            {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "all"},
            (Turn("instruction", "Add.\n\n2, 2", False), Turn("response", "4", True)),
        ),
        (
            {"instruction": "Hi", "context": None, "response": "Hello."},
            (Turn("instruction", "Hi", False), Turn("response", "Hello.", True)),
        ),
        (
            {"instruction": "Hi", "output": "Hello."},
            (Turn("instruction", "Hi", False), Turn("response", "Hello.", True)),
        ),
        ({"text": "once", "url": "u"}, (Turn("", "once", True),)),
    ],
)
def test_forms_are_found_by_their_columns(tmp_path, row, turns):
    assert read(lines(tmp_path, row)) == [turns]


@pytest.mark.parametrize("columns", [["text", "y"], ["question", "answer"], ["id"]])
def test_other_tables_are_not_taken(tmp_path, columns):
    assert read(lines(tmp_path, dict.fromkeys(columns, "x"))) is None


def test_columns_can_be_named(tmp_path):
    path = lines(tmp_path, {"question": "2+2=", "answer": "4", "chat": HI})
    assert read(path, asked=("question", "answer")) == [
        (Turn("", "2+2=", False), Turn("", "4", True))
    ]
    assert read(path, asked=("answer",)) == [(Turn("", "4", True),)]
    assert read(path, asked=("chat",)) == [TURNS]
    with pytest.raises(DataError, match=r"no column 'answr'.*but 'answer'"):
        read(path, asked=("answr",))


def test_every_format_gives_the_same_rows(tmp_path):
    rows = [{"messages": HI}, {"messages": [*HI, *HI]}]
    array, parquet, csv = (tmp_path / name for name in ("r.json", "r.parquet", "r.csv"))
    array.write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    quoted = [json.dumps(row["messages"]).replace('"', '""') for row in rows]
    csv.write_text("messages\n" + "".join(f'"{text}"\n' for text in quoted))
    for path in (lines(tmp_path, *rows), array, parquet, csv):
        assert read(path) == [TURNS, (*TURNS, *TURNS)], path.suffix


def test_what_looks_like_a_date_or_a_number_stays_text(tmp_path):
    """The library datasets makes dates of such a column, read from JSON."""
    said = ["2024-01-05", "2024-01-05T10:00:00Z", "1e3", "007", "true", "null"]
    rows = [{"prompt": f"{place}?", "completion": text} for place, text in enumerate(said)]
    csv, parquet = tmp_path / "r.csv", tmp_path / "r.parquet"
    csv.write_text("prompt,completion\n" + "".join(f"{n}?,{t}\n" for n, t in enumerate(said)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    for path in (lines(tmp_path, *rows), csv, parquet):
        assert [answer.text for _, answer in read(path)] == said, path.suffix


def test_keys_that_parquet_fills_with_nothing_are_left_out(tmp_path):
    call = {"function": {"name": "f", "arguments": "{}"}}
    rows = [{"messages": [HI[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}]
    path = tmp_path / "r.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    ((user, assistant),) = read(path)
    assert user == TURNS[0]
    assert json.loads(assistant.more) == {"tool_calls": [call]}


def test_keys_may_be_missing_in_some_rows(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        {"instruction": "Hi", "output": "Hello."},
        {"instruction": "Hi", "input": "", "output": "Hello.", "id": 3},
    ]
    plain = Turn("instruction", "Hi", False), Turn("response", "Hello.", True)
    first = Turn("instruction", "Add.\n\n2, 2", False), Turn("response", "4", True)
    for order in (rows, rows[::-1]):
        assert read(lines(tmp_path, *order)) == [
            plain if "2" not in str(r) else first for r in order
        ]
    with pytest.raises(DataError, match=r"line 4: found None in the column 'output'; expected"):
        read(lines(tmp_path, *rows, {"instruction": "Hi"}))


ADD = {"type": "function", "function": {"name": "add", "parameters": {"a": {"type": "number"}}}}
DIVIDE = {"type": "function", "function": {"name": "divide", "parameters": {"b": {"min": 1}}}}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_tools_stand_before_their_chats(tmp_path, suffix):
    path = tmp_path / f"r.{suffix}"
    rows = [{"messages": HI, "tools": [ADD, DIVIDE]}, {"messages": HI, "tools": []}]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {"messages": HI}]), path)
    else:
        spelled = {"messages": HI, "tools": json.dumps([ADD, DIVIDE])}
        path.write_text("\n".join(map(json.dumps, [*rows, {"messages": HI}, spelled])))
    first, second, third, *others = read(path)
    assert [first[1:], second, third] == [TURNS, TURNS, TURNS]
    assert all(row == first for row in others)
    assert (first[0].role, first[0].text, first[0].counted) == ("tools", "", False)
    assert json.loads(first[0].more) == [ADD, DIVIDE]
    assert read(path, asked=("messages",))[0] == TURNS


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("add", r"the column 'tools' is no list in JSON"),
        (["add"], r"the column 'tools' holds \['add'\]; expected a list of descriptions"),
        (3, r"the column 'tools' holds 3; expected a list"),
    ],
)
def test_tools_that_are_none(tmp_path, tools, message):
    path = lines(tmp_path, {"messages": HI}, {"messages": HI, "tools": tools})
    with pytest.raises(DataError, match=rf"line 2: {message}"):
        read(path)


def test_messages_in_parts_and_with_weights(tmp_path):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]
    row = [HI[0], {"role": "assistant", "content": parts, "weight": 0}]
    assert read(lines(tmp_path, {"messages": row})) == [
        (TURNS[0], Turn("assistant", "Hello.", False))
    ]


def test_everything_counts_if_asked(tmp_path):
    ((first, second),) = read(lines(tmp_path, {"messages": HI}), loss_on="all")
    assert (first.counted, second.counted) == (True, True)


def test_rows_keep_their_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('\n{"text": "a"}\n\n{"text": "b"}\n')
    table = read_table(str(path), "--train-file", split="train")
    found = DIALOGUES.read(table, ("text",), loss_on="all", labelled=True)
    assert found.where(1) == f"{path}, line 4"
    assert found.labels == [0, 0]


def say(*roles):
    return [{"role": role, "content": "x"} for role in roles]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (say("user"), "no turn is the assistant's"),
        (say("assistant", "user"), "answers before anybody has asked"),
        (say("user", "system", "assistant"), "only the first turn may be the system's"),
        (say("system", "assistant"), "answers before anybody has asked"),
        (say("user", "assistant", "assistant"), "answers twice in a row"),
        (say("user", "asistant"), r"message 2: found the role 'asistant'; expected one of system"),
        ([], r"holds \[\]; expected a list of messages"),
        ("Hi", "expected a list of messages"),
        (["Hi"], "message 1: found 'Hi'; expected an object"),
        ([{"role": "user"}], "message 1: found None as the content"),
        ([{"role": "user", "content": 3}], "message 1: found 3 as the content"),
        (
            [{"role": "user", "content": [{"type": "image", "url": "u"}]}],
            "message 1: found .*image.* in the content; expected text",
        ),
        ([HI[0], {**HI[1], "weight": 2}], "message 2: found the weight 2; expected 0 or 1"),
    ],
)
def test_chats_that_are_none(tmp_path, messages, message):
    path = lines(tmp_path, {"messages": HI}, {"messages": messages})
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completion": None}, "found None in the column 'completion'"),
        ({"prompt": "a", "completion": HI}, "in the column 'completion'; expected text"),
        ({"prompt": HI, "completion": "a"}, "the column 'completion' holds 'a'; expected a list"),
    ],
)
def test_prompts_and_completions_that_are_none(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"line 1: .*{message}"):
        read(lines(tmp_path, row))


def test_inputs_that_are_no_text(tmp_path):
    path = lines(tmp_path, {"instruction": "a", "input": 3, "output": "b"})
    with pytest.raises(DataError, match=r"line 1: found 3 in the column 'input'"):
        read(path)


def test_messages_of_a_csv_that_are_no_json(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("messages\nHi\n")
    with pytest.raises(DataError, match=r"r\.csv, line 2: .* no list of messages in JSON"):
        read(path)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"messages": [{"role": "system", "content": "s"}, *HI, *say("user", "assistant")]}, "Hi"),
        ({"messages": HI, "tools": [ADD]}, "Hi"),
        ({"prompt": "2+2=", "completion": "4"}, "2+2="),
        ({"prompt": HI[:1], "completion": HI[1:]}, "Hi"),
        ({"instruction": "Add.", "input": "2, 2", "output": "4"}, "Add.\n\n2, 2"),
    ],
)
def test_what_a_row_answers_is_known(tmp_path, row, prompt):
    """Answers to one prompt stay together when rows are held out."""
    table = read_table(str(lines(tmp_path, row)), "--train-file", split="train")
    columns = DIALOGUES.columns(table, None)
    for loss_on in ("completions", "all"):
        found = DIALOGUES.read(table, columns, loss_on=loss_on, labelled=True)
        assert found.prompts == [prompt]


def test_texts_answer_nothing(tmp_path):
    table = read_table(str(lines(tmp_path, {"text": "once"})), "--train-file", split="train")
    assert DIALOGUES.read(table, ("text",), loss_on="all", labelled=True).prompts is None


SAVED = {
    "messages": {"messages": [HI, [*HI, *HI]]},
    "prompt and completion": {"prompt": ["a", "b"], "completion": ["c", "d"]},
    "alpaca": {"instruction": ["a", "b"], "input": ["", "2"], "output": ["c", "d"]},
    "text": {"text": ["a", "b"]},
}


@pytest.mark.parametrize("form", SAVED)
def test_data_sets_that_were_saved(tmp_path, form):
    """Their own validation split is read; where there is none, rows are held out."""
    rows = datasets.Dataset.from_dict(SAVED[form])
    both, alone = tmp_path / "both", tmp_path / "alone"
    datasets.DatasetDict({"train": rows, "validation": rows.select([1])}).save_to_disk(both)
    rows.save_to_disk(alone)
    plain = lines(tmp_path, *rows.to_list())
    for source, count in ((both, 1), (alone, 1)):
        assert kind_of(str(source)) == kind_of(str(plain)) == "causal"
        config = resolve({"train_file": str(source), "model": "m"}).config
        task, found = own_examples(config, None, None)
        assert (task.objective, len(found["validation"])) == ("causal", count)
        assert bool(task.held_out) is (source == alone)
    _, found = own_examples(resolve({"train_file": str(both), "model": "m"}).config, None, None)
    assert [from_text(text) for text in found["train"].first] == read(plain)
