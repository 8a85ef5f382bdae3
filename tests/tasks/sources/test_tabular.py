"""Tasks of the user's own: which columns, which labels, and what is amiss with them."""

from __future__ import annotations

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.files.own_columns import LABELS, TEXT_COLUMNS
from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.dialogue import from_text
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tables.table import Table
from bayeslora_cli.tasks.sources.tabular import (
    custom_task,
    table_examples,
)
from bayeslora_cli.tasks.task import Examples


def table(columns, *, spelled=False, class_names=None, option="--train-file"):
    """A table as if it had been read from lines 2 and on."""
    rows = len(next(iter(columns.values())))
    return Table(
        option=option,
        source="own",
        names=tuple(columns),
        rows=rows,
        read_column=columns.__getitem__,
        lines=range(2, 2 + rows),
        class_names=class_names or {},
        spelled=spelled,
    )


def labelled(labels, **more):
    return table({"text": [f"t{i}" for i in range(len(labels))], "label": labels}, **more)


def task_of(columns, text_columns=None, label_column=None):
    return custom_task(table(columns), text_columns=text_columns, label_column=label_column)


def learn(labels, **more):
    """The task of a training table and its labels as learnt."""
    train = labelled(labels, **more)
    task = custom_task(train, text_columns=None, label_column=None)
    return task, table_examples(train, task, labelled=True).labels


def classes_of(labels, **more):
    return learn(labels, **more)[0].classes


def evaluate(task, labels, **more):
    must = more.pop("must", None)
    return table_examples(labelled(labels, option="--eval-file", **more), task, labelled=must)


# --- columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", TEXT_COLUMNS)
def test_texts_are_guessed(guess):
    columns = {"id": ["1", "2"], "label": ["x", "y"]} | {n: ["a", "b"] for n in guess}
    task = task_of(columns)
    assert (task.name, task.text_columns, task.label_column) == ("custom", guess, "label")


@pytest.mark.parametrize("guess", LABELS)
def test_labels_are_guessed(guess):
    assert task_of({"text": ["a", "b"], guess: ["x", "y"]}).label_column == guess


def test_the_first_guess_counts():
    every = {name: ["a", "b"] for guess in TEXT_COLUMNS for name in guess}
    every |= {name: ["x", "y"] for name in reversed(LABELS)}
    task = task_of(every)
    assert (task.text_columns, task.label_column) == (("sentence1", "sentence2"), "label")
    for name in ("sentence1", "premise", "question1", "question", "text1"):
        del every[name]
    assert task_of(every).text_columns == ("sentence",)


def test_what_was_asked_for_is_not_guessed_again():
    columns = {"text": ["a", "b"], "content": ["c", "d"], "label": ["e", "f"], "class": ["g", "h"]}
    assert task_of(columns, label_column="text").text_columns == ("content",)
    assert task_of(columns, text_columns=("label",)).label_column == "class"
    assert task_of(columns, ("class", "label"), "text").text_columns == ("class", "label")


def test_nothing_to_guess():
    with pytest.raises(
        DataError, match=r"^--train-file own: found the columns 'body', 'label'.*--text-columns a,b"
    ):
        task_of({"body": ["a", "b"], "label": ["x", "y"]})
    with pytest.raises(
        DataError, match=r"^--train-file own: found the columns 'text', 'y'.*--label-column NAME"
    ):
        task_of({"text": ["a", "b"], "y": ["x", "y"]})


@pytest.mark.parametrize(
    ("texts", "label", "option", "near"),
    [
        (("texts",), None, "--text-columns", "but 'text'"),
        (("text", "qqq"), None, "--text-columns", ""),
        (("text",), "lable", "--label-column", "but 'label'"),
    ],
)
def test_columns_that_are_not_there(texts, label, option, near):
    columns = {"text": ["a", "b"], "label": ["x", "y"]}
    with pytest.raises(DataError, match=rf"^--train-file own: has no column.*{option}") as caught:
        task_of(columns, texts, label)
    assert str(caught.value).endswith("found 'text', 'label'")
    assert (", but " in str(caught.value)) == bool(near)
    assert near in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "label"),
    [(("a", "b", "c"), "d"), (("a", "a"), "d"), (("a", "d"), "d"), (("d",), "d")],
)
def test_columns_that_do_not_go_together(texts, label):
    columns = {name: ["x", "y"] for name in "abcd"}
    with pytest.raises(DataError, match="give one or two text columns"):
        task_of(columns, texts, label)


# --- labels of the training table --------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "more", "classes", "learnt"),
    [
        (["b", "a", "B", "b"], {}, ("B", "a", "b"), [2, 1, 0, 2]),
        (["b ", "b"], {"spelled": True}, ("b", "b "), [1, 0]),
        (["10", "9"], {}, ("10", "9"), [0, 1]),
        ([10, 9, -1], {}, ("-1", "9", "10"), [2, 1, 0]),
        (["10", "9", "-1"], {"spelled": True}, ("-1", "9", "10"), [2, 1, 0]),
        (["01", "+1", " 1", "2"], {"spelled": True}, ("1", "2"), [0, 0, 0, 1]),
        (["01", "1", "x"], {"spelled": True}, ("01", "1", "x"), [0, 1, 2]),
        (["1_0", "2_0"], {"spelled": True}, ("1_0", "2_0"), [0, 1]),
        (["١", "٢"], {"spelled": True}, ("١", "٢"), [0, 1]),
        (["nan", "yes"], {"spelled": True}, ("nan", "yes"), [0, 1]),
        ([True, False], {}, ("false", "true"), [1, 0]),
        ([2, 1], {"class_names": {"label": ("z", "y", "x")}}, ("z", "y", "x"), [2, 1]),
    ],
)
def test_classes(labels, more, classes, learnt):
    task, got = learn(labels, **more)
    assert task.classes == classes
    assert got == learnt
    assert task.objective == "classification"
    assert (task.metrics, task.selecting) == (("accuracy", "macro_f1"), "accuracy")


@pytest.mark.parametrize(
    ("labels", "spelled", "learnt"),
    [
        ([0.5, 1.0], False, [0.5, 1.0]),
        ([0.0, 1.0], False, [0.0, 1.0]),
        ([3, 3.5], False, [3.0, 3.5]),
        (["3", " 3.5", "-1e-2"], True, [3.0, 3.5, -0.01]),
        (["1.0", "0.0"], True, [1.0, 0.0]),
    ],
)
def test_scores(labels, spelled, learnt):
    task, got = learn(labels, spelled=spelled)
    assert got == learnt
    assert all(type(score) is float for score in got)
    assert task.objective == "regression"
    assert (task.metrics, task.selecting) == (("pearson", "spearman"), "pearson_spearman")


@pytest.mark.parametrize(
    ("labels", "more", "why"),
    [
        (["a", "b", None], {}, "own, line 4: found no label in the column 'label'"),
        (
            ["a|b", "b", None],
            {},
            "own, line 4: .*expected one, or --task-type multi-label if rows may have none",
        ),
        (["a", "", "b"], {"spelled": True}, "own, line 3: found no label"),
        (["1", "2", ""], {"spelled": True}, "own, line 4: found no label"),
        (["1.5", "nan"], {"spelled": True}, "own, line 3: found no label"),
        ([0.5, float("nan")], {}, "own, line 3: found no label"),
        ([0, 1, -1], {"class_names": {"label": ("a", "b")}}, "own, line 4: found no label"),
        ([0, 1, None], {"class_names": {"label": ("a", "b")}}, "own, line 4: found no label"),
        ([0, 2, 1], {"class_names": {"label": ("a", "b")}}, "own, line 3: found no label"),
        ([0.5, float("inf")], {}, "own, line 3: found the label inf; .* a finite number"),
        (["1", "-inf", "2"], {"spelled": True}, "own, line 3: found the label -inf"),
        ([0.5, 10**400], {}, "own, line 3: found the label 10000"),
        (["a", [1]], {}, r"own, line 3: found the label \[1\]; expected text, a finite number"),
        (
            [1, 2, "a"],
            {},
            r"own, line 4: found the label 'a' \(text\), and 1 \(a number\) at own, line 2",
        ),
        (
            [True, 1],
            {},
            r"own, line 3: found the label 1 \(a number\), and True \(true or false\) at own, li",
        ),
        (["a", "a"], {}, "--train-file own: found only the label 'a'.*nothing to learn"),
        ([0.5, 0.5], {}, "--train-file own: found only the label 0.5.*nothing to learn"),
        ([1, 1], {"class_names": {"label": ("a", "b")}}, "own: found only the label 'b'"),
        ([*range(11), *[0] * 9], {}, "own: found 11 different labels in 20 rows.*--label-column"),
    ],
)
def test_labels_that_are_none(labels, more, why):
    with pytest.raises(DataError, match=f"^(--train-file )?{why}") as caught:
        learn(labels, **more)
    assert len(str(caught.value)) < 300


def test_many_classes_can_be_right():
    assert len(classes_of([*range(10), *[0] * 10])) == 10
    assert len(classes_of(list(range(19)))) == 19  # too few rows to tell
    assert len(classes_of([i / 2 for i in range(40)])) == 0
    names = tuple(f"intent {i}" for i in range(40))  # a ClassLabel is one, however many
    assert classes_of(list(range(40)), class_names={"label": names}) == names


# --- other tables of the task ------------------------------------------------------------------


def test_integer_classes_match_however_they_are_spelled():
    for train in (learn([0, 1, 10])[0], learn(["0", "1", "10"], spelled=True)[0]):
        assert evaluate(train, [10, 0]).labels == [2, 0]
        assert evaluate(train, ["10", "00", "1 "], spelled=True).labels == [2, 0, 1]
        assert evaluate(train, ["10", "0"]).labels == [2, 0]


def test_text_classes_match_to_the_letter():
    task, _ = learn(["1", "a"], spelled=True)
    with pytest.raises(DataError, match="own, line 2: found the label '01'"):
        evaluate(task, ["01"], spelled=True)


def test_true_and_false_match_in_csv():
    assert evaluate(learn([True, False])[0], ["true", "false"], spelled=True).labels == [1, 0]


def test_class_labels_match_by_name():
    task, _ = learn(["bad", "good"])
    names = {"label": ("good", "bad", "unused")}
    assert evaluate(task, [0, 1], class_names=names).labels == [1, 0]
    with pytest.raises(DataError, match="own, line 3: found the label 'unused'"):
        evaluate(task, [0, 2], class_names=names)


def test_scores_may_be_integers():
    task, _ = learn([0.5, 1.5])
    assert evaluate(task, [3]).labels == [3.0]
    assert evaluate(task, ["3", "4.5"], spelled=True).labels == [3.0, 4.5]


@pytest.mark.parametrize(
    ("train", "labels", "spelled", "why"),
    [
        (["a", "b"], ["a", "c"], False, "line 3: found the label 'c'.*expected one of 'a', 'b'$"),
        ([0, 1], [0, 2], False, "line 3: found the label 2 .*expected one of '0', '1'$"),
        ([0, 1], ["0", "x"], True, "line 3: found the label 'x' "),
        ([0, 1], [1.0], False, "line 2: found the label 1.0 "),
        ([0, 1], [True], False, "line 2: found the label True "),
        ([0.5, 1.5], ["1", "x"], True, "line 3: found the label 'x' .*expected a finite number$"),
        ([0.5, 1.5], [1.5, "1.5"], False, "line 3: found the label '1.5' "),
        ([0.5, 1.5], [1.5, float("inf")], False, "line 3: found the label inf "),
        ([0.5, 1.5], ["1", "nan"], True, "line 3: found the label 'nan' "),
        ([0.5, 1.5], [1, True], False, "line 3: found the label True "),
        ([0, 1], [0, None], False, "line 3: found no label in the column 'label'"),
        ([0, 1], ["0", ""], True, "line 3: found no label in the column 'label'"),
    ],
)
def test_labels_unknown_to_the_task(train, labels, spelled, why):
    task, _ = learn(train)
    for must in (None, True):
        with pytest.raises(DataError, match=f"^own, {why}"):
            evaluate(task, labels, spelled=spelled, must=must)
    assert evaluate(task, labels, spelled=spelled, must=False).labels is None


def test_unknown_labels_and_many_classes_are_shortened():
    task, _ = learn([f"{i:>0200}" for i in range(25)] * 4)
    with pytest.raises(DataError, match=r"and 5 more$") as caught:
        evaluate(task, ["x" * 5000])
    assert len(str(caught.value)) < 1200


def test_tables_without_labels():
    task, _ = learn(["a", "b"])
    bare = table({"text": ["t"]}, option="--eval-file")
    assert table_examples(bare, task, labelled=None) == Examples(["t"], None, None)
    assert table_examples(bare, task, labelled=False).labels is None
    with pytest.raises(DataError, match=r"^--eval-file own: has no column 'label'"):
        table_examples(bare, task, labelled=True)
    for nothing, more in (
        ([None, None], {}),
        (["", ""], {"spelled": True}),
        ([-1, -1], {"class_names": {"label": ("a", "b")}}),
        ([float("nan")], {}),
    ):
        assert evaluate(task, nothing, **more).labels is None
        with pytest.raises(DataError, match="line 2: found no label"):
            evaluate(task, nothing, must=True, **more)


def test_texts_of_other_tables():
    task, _ = learn(["a", "b"])
    other = table({"texts": ["t"], "label": ["a"]}, option="--eval-file")
    with pytest.raises(DataError, match=r"^--eval-file own: has no column 'text' .*but 'texts'"):
        table_examples(other, task, labelled=None)
    for text in (None, 3, ["word"], {"long": "x" * 5000}):
        bad = table({"text": ["t", text], "label": ["a", "b"]})
        with pytest.raises(DataError, match=r"^own, line 3: found .*'text'; expected") as caught:
            table_examples(bad, task, labelled=None)
        assert len(str(caught.value)) < 200


# --- from file to examples ---------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=8),
    kinds=st.sampled_from([("red", "blue"), (3, 12), (0.5, 2.0)]),
    data=st.data(),
)
@example(rows=[("\t", '"'), ("\n", "\r\n")], kinds=(3, 12), data=None)
def test_the_same_rows_make_the_same_examples(tmp_path_factory, rows, kinds, data):
    rest = [data.draw(st.sampled_from(kinds)) for _ in rows[2:]] if data else []
    full = [(a, b, label) for (a, b), label in zip(rows, [*kinds, *rest], strict=True)]
    names = ("text1", "text2", "target")
    folder = tmp_path_factory.getbasetemp()
    with (folder / "own.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([names, *full])
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in full]
    (folder / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = dict(zip(names, map(list, zip(*full, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "own.parquet")
    order = {"red": 1, "blue": 0, 3: 0, 12: 1, 0.5: 0.5, 2.0: 2.0}
    want = Examples([a for a, _ in rows], [b for _, b in rows], [order[row[2]] for row in full])
    tables = [
        read_table(str(folder / f"own.{kind}"), "--train-file", split="train")
        for kind in ("csv", "jsonl", "parquet")
    ]
    if not all(map(all, rows)):  # in a csv an empty field is no text
        with pytest.raises(DataError, match=r"line \d+: found an empty field in the column 'text"):
            table_examples(
                tables.pop(0),
                custom_task(tables[0], text_columns=None, label_column=None),
                labelled=True,
            )
    for train in tables:
        task = custom_task(train, text_columns=None, label_column=None)
        assert (task.objective == "regression") == isinstance(kinds[0], float)
        for other in tables:
            assert table_examples(other, task, labelled=True) == want


# ---- what cannot be told from the labels alone


def test_whole_numbers_with_a_point_are_scores_with_a_loud_notice(caplog):
    """What pandas writes of 0 and 1 in a column with a gap."""
    for labels, spelled in (([0.0, 1.0, 1.0], False), (["0.0", "1.0", "1.0"], True)):
        caplog.clear()
        assert learn(labels, spelled=spelled)[0].objective == "regression"
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "this is a REGRESSION" in record.message
        assert "--task-type classification" in record.message
    caplog.clear()
    learn([0.0, 0.5, 1.0])
    learn([0, 1, 1])
    assert not caplog.records


@pytest.mark.parametrize(
    ("labels", "spelled"), [([0.0, 1.0, 0.0], False), (["0.0", "1.0", "0.0"], True)]
)
def test_the_task_type_decides(labels, spelled, caplog):
    train = table({"text": ["a", "b", "c"], "label": labels}, spelled=spelled)
    kinds = {}
    for kind in ("classification", "regression"):
        task = custom_task(train, text_columns=None, label_column=None, task_type=kind)
        kinds[task.objective] = task.classes, table_examples(train, task, labelled=True).labels
    assert kinds == {
        "classification": (("0.0", "1.0"), [0, 1, 0]), "regression": ((), [0.0, 1.0, 0.0]),
    }  # fmt: skip
    assert not caplog.records
    whole = table({"text": ["a", "b"], "label": ["1", "01.0"]}, spelled=True)
    task = custom_task(train, text_columns=None, label_column=None, task_type="classification")
    if spelled:
        assert table_examples(whole, task, labelled=True).labels == [1, 1]


def test_a_task_type_that_the_labels_are_not():
    words = table({"text": ["a", "b"], "label": ["x", "y"]})
    task = custom_task(words, text_columns=None, label_column=None, task_type="regression")
    with pytest.raises(DataError, match=r"found the label 'x' .*expected a finite number"):
        table_examples(words, task, labelled=True)
    mixed = table({"text": ["a", "b"], "label": ["x", 1]})
    with pytest.raises(DataError, match="expected labels of one kind"):
        custom_task(mixed, text_columns=None, label_column=None, task_type="classification")


@pytest.mark.parametrize("separator", ["|", ";", ","])
def test_labels_that_are_lists_have_a_notice(separator, caplog):
    """Rows with several labels each became a class for every combination, without a word."""
    lists = [separator.join(s) for s in (["a"], ["b"], ["a", "b"], ["b", "c"], ["a", "b", "c"])]
    assert len(learn(lists)[0].classes) == 5
    (record,) = caplog.records
    assert "5 classes in all" in record.message
    assert "3 classes, but a row has one class here" in record.message


def test_labels_with_a_comma_of_their_own_have_none(caplog):
    learn(["Paris, France", "Rome, Italy", "yes; no"])
    assert not caplog.records


def test_an_empty_field_of_a_csv_is_no_text():
    columns = {"text": ["a", ""], "label": ["x", "y"]}
    learnt = table(columns, spelled=True)
    task = custom_task(learnt, text_columns=None, label_column=None)
    with pytest.raises(DataError, match=r"^own, line 3: found an empty field in the column 'text'"):
        table_examples(learnt, task, labelled=True)
    said = table(columns)  # JSON says that the text is empty
    task = custom_task(said, text_columns=None, label_column=None)
    assert table_examples(said, task, labelled=True).first == ["a", ""]


@pytest.mark.parametrize("name", ["sentiment", "category", "verdict"])
def test_usual_names_of_labels(name):
    task = task_of({"text": ["a", "b"], name: ["x", "y"]})
    assert task.label_column == name


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["chosen", "rejected"], "pairs of answers"),
    ],
)
def test_tables_for_other_ends_are_named(names, what):
    with pytest.raises(DataError, match=f"looks like {what}.*, which is not trained here"):
        task_of({name: ["a", "b"] for name in names})


# --- rows of other forms -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "typed", "kind", "texts"),
    [
        ({"messages": [[], []]}, None, "causal", ("messages",)),
        (
            {"prompt": ["a", "b"], "completion": ["c", "d"]},
            None,
            "causal",
            ("prompt", "completion"),
        ),
        ({"text": ["a", "b"]}, None, "causal", ("text",)),
        ({"text": ["a", "b"], "label": ["x", "y"]}, None, "classification", ("text",)),
        ({"text": ["a", "b"], "label": ["x", "y"]}, "causal", "causal", ("text",)),
        (
            {"question": ["a", "b"], "choices": [["x", "y"]] * 2, "answer": [0, 1]},
            None,
            "choice",
            ("question", "choices"),
        ),
    ],
)
def test_the_kind_of_a_table_follows_from_its_columns(columns, typed, kind, texts):
    found = custom_task(table(columns), text_columns=None, label_column=None, task_type=typed)
    assert (found.objective, found.text_columns) == (kind, texts)


def test_a_kind_that_the_table_has_no_rows_for():
    with pytest.raises(
        DataError, match=r"none with rows for --task-type causal; expected messages"
    ):
        custom_task(
            table({"q": ["a"], "a": ["b"]}, option="--train-file"),
            text_columns=None,
            label_column=None,
            task_type="causal",
        )


def test_rows_to_evaluate_on_may_have_another_form():
    task = custom_task(table({"text": ["a", "b"]}), text_columns=None, label_column=None)
    other = table({"prompt": ["a"], "completion": ["b"]}, option="--eval-file")
    found = table_examples(other, task, labelled=None)
    assert [len(from_text(text)) for text in found.first] == [2]
