"""The nine tasks from every source, their faults, and what becomes of the rows as tokens."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bayeslora_cli.config.catalogue import METRICS
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.tasks.sources.glue import TASKS, read_tsv
from bayeslora_cli.tasks.sources.loading import load_task
from bayeslora_cli.tasks.task import Examples

GLUE = Path(
    os.environ.get("BAYESLORA_GLUE") or Path(__file__).parents[4] / "shared" / "glue"
).absolute()

# headers of the official files, with labels and without
HEADERS = {
    "cola": (None, "index sentence"),
    "sst2": ("sentence label", "index sentence"),
    "mrpc": (
        "Quality|#1 ID|#2 ID|#1 String|#2 String",
        "index|#1 ID|#2 ID|#1 String|#2 String",
    ),
    "qqp": ("id qid1 qid2 question1 question2 is_duplicate", "id question1 question2"),
    "stsb": (
        "index genre filename year old_index source1 source2 sentence1 sentence2 score",
        "index genre filename year old_index source1 source2 sentence1 sentence2",
    ),
    "mnli": (
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
        "sentence2_parse sentence1 sentence2 label1 gold_label",
        "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
        "sentence2_parse sentence1 sentence2",
    ),
    "qnli": ("index question sentence label", "index question sentence"),
    "rte": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
    "wnli": ("index sentence1 sentence2 label", "index sentence1 sentence2"),
}
LABELS = {
    "cola": {"0": 0, "1": 1},
    "sst2": {"0": 0, "1": 1},
    "mrpc": {"0": 0, "1": 1},
    "qqp": {"0": 0, "1": 1},
    "stsb": {"0.000": 0.0, "3.250": 3.25, "5.000": 5.0},
    "mnli": {"entailment": 0, "neutral": 1, "contradiction": 2},
    "qnli": {"entailment": 0, "not_entailment": 1},
    "rte": {"entailment": 0, "not_entailment": 1},
    "wnli": {"0": 0, "1": 1},
}
EVERY_TASK = pytest.mark.parametrize("name", list(HEADERS))


def columns_of(name, *, labelled):
    header = HEADERS[name][0 if labelled else 1]
    if header is None:
        return ["source", "label", "mark", "sentence"]
    return header.split("|" if "|" in header else " ")


def write_tsv(path, name, rows, *, labelled=True, columns=None, bom=None, end="\n"):
    """Rows (first, second, label) in the official layout; other columns are filled with "x"."""
    task = TASKS[name]
    columns = columns or columns_of(name, labelled=labelled)
    lines = [] if labelled and name == "cola" else ["\t".join(columns)]
    for first, second, label in rows:
        own = dict(zip(task.tsv_text, (first, second), strict=False)) | {task.tsv_label: label}
        lines.append("\t".join(str(own.get(column, "x")) for column in columns))
    path.parent.mkdir(parents=True, exist_ok=True)
    text = end.join(lines) + end
    bom = name == "mrpc" and labelled if bom is None else bom
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode())
    return path


def some_rows(name, n=5):
    spellings = list(LABELS[name])
    return [(f"first {i}", f"second {i}", spellings[i % len(spellings)]) for i in range(n)]


def write_task(root, name):
    """A small task in the official layout, without its test files."""
    folder = root / TASKS[name].folder
    train = write_tsv(folder / "train.tsv", name, some_rows(name))
    if name == "mnli":  # the development files carry five annotators' labels
        columns = [*columns_of(name, labelled=True)[:-1], "label2", "label3", "gold_label"]
        write_tsv(folder / "dev_matched.tsv", name, some_rows(name, 4), columns=columns)
        write_tsv(folder / "dev_mismatched.tsv", name, some_rows(name, 3), columns=columns)
    else:
        write_tsv(folder / "dev.tsv", name, some_rows(name, 4))
    return train


# --- the table ---------------------------------------------------------------------------------


@EVERY_TASK
def test_task_table(name):
    task = TASKS[name]
    assert task.name == name
    assert set(task.metrics) <= set(METRICS)
    assert task.selecting in {*task.metrics, "pearson_spearman"}
    assert (task.objective == "regression") == (name == "stsb")
    assert len(task.tsv_text) == len(task.text_columns)
    assert dict(zip(task.tsv_labels, range(9), strict=False)) == (
        {} if not task.classes else LABELS[name]
    )
    assert len(task.classes) == len(task.tsv_labels)


def test_classes_stand_in_the_hubs_order():
    assert {name: task.classes for name, task in TASKS.items()} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "qqp": ("not_duplicate", "duplicate"),
        "stsb": (),
        "mnli": ("entailment", "neutral", "contradiction"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("not_entailment", "entailment"),
    }


# --- TSV files ---------------------------------------------------------------------------------


@EVERY_TASK
def test_official_layout(tmp_path, name):
    task = TASKS[name]
    write_task(tmp_path, name)
    loaded = load_task(name, tmp_path)
    assert tuple(loaded) == task.required_splits
    train = loaded["train"]
    assert train.first == [f"first {i}" for i in range(5)]
    pair = len(task.tsv_text) == 2
    assert train.second == ([f"second {i}" for i in range(5)] if pair else None)
    assert train.labels == [LABELS[name][label] for _, _, label in some_rows(name)]
    assert [len(loaded[split]) for split in task.validation_splits] == [4, 3][: len(loaded) - 1]

    for split in task.test_splits:
        path = tmp_path / task.folder / f"{split}.tsv"
        write_tsv(path, name, some_rows(name, 6), labelled=False)
    with_test = load_task(name, tmp_path / task.folder)  # the task's own folder will do
    assert tuple(with_test) == task.splits
    for split in task.test_splits:
        assert with_test[split].labels is None
        assert with_test[split].first == [f"first {i}" for i in range(6)]
    assert list(load_task(name, tmp_path, ["train"])) == ["train"]


def test_only_the_splits_asked_for_are_read(tmp_path):
    write_task(tmp_path, "rte")
    (tmp_path / "RTE" / "train.tsv").write_text("nothing of use")
    assert list(load_task("rte", tmp_path, ["validation"])) == ["validation"]
    with pytest.raises(DataError, match=r"train.tsv"):
        load_task("rte", tmp_path)


# U+2028, U+0085, U+000B and U+001C end a line for str.splitlines; "\r" for universal newlines
SENTENCES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n"), max_size=20),
    st.text("\"\u2028\u2029\x85\x0b\x0c\x1c\ufeff\r\\, 'a", max_size=20),
)


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8),
    bom=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
)
@example(rows=[('"open', 'a\u2028b\x85c"'), ("\ufeffx", " spaces ")], bom=True, end="\r\n")
def test_any_sentence_survives(tmp_path_factory, rows, bom, end):
    path = tmp_path_factory.getbasetemp() / "any" / "train.tsv"
    full = [(first, second, "entailment") for first, second in rows]
    write_tsv(path, "rte", full, bom=bom, end=end)
    got = read_tsv(path, TASKS["rte"], labelled=True)
    assert got == Examples([a for a, _ in rows], [b for _, b in rows], [0] * len(rows))


def test_cola_has_no_header_in_labelled_files_alone(tmp_path):
    path = write_tsv(tmp_path / "dev.tsv", "cola", [("One .", None, "1")], bom=True, end="\r\n")
    got = read_tsv(path, TASKS["cola"], labelled=True)
    assert got == Examples(["One ."], None, [1])
    path = write_tsv(tmp_path / "test.tsv", "cola", [("Two .", None, None)], labelled=False)
    assert read_tsv(path, TASKS["cola"], labelled=False) == Examples(["Two ."], None, None)


def test_columns_are_found_by_name(tmp_path):
    columns = ["sentence2", "more", "label", "sentence1", "index"]
    path = write_tsv(tmp_path / "a.tsv", "wnli", [("A", "B", "1")], columns=columns)
    assert read_tsv(path, TASKS["wnli"], labelled=True) == Examples(["A"], ["B"], [1])


def test_qqp_leaves_out_corrupted_rows_and_says_how_many(tmp_path, caplog):
    path = write_tsv(tmp_path / "train.tsv", "qqp", [("a", "b", "1"), ("c", "", "0")])
    with path.open("a") as file:
        file.write("1\t2\t3\tthe rest is lost\n1\t2\t3\tno\tlabel\t\n1\t2\t3\te\tf\t0\n")
    with caplog.at_level(logging.INFO, logger="bayeslora"):
        got = read_tsv(path, TASKS["qqp"], labelled=True)
    assert got == Examples(["a", "c", "e"], ["b", "", "f"], [1, 0, 0])
    assert "left out 2 corrupted rows" in caplog.text
    # a wrong label is no such corruption, and a test row may never be left out
    path.write_text(path.read_text().replace("\t0\n", "\t2\n"))
    with pytest.raises(DataError, match="line 3: found '2'"):
        read_tsv(path, TASKS["qqp"], labelled=True)
    path.write_text("id\tquestion1\tquestion2\n0\ta\n")
    with pytest.raises(DataError, match="line 2: found 2 fields; expected 3"):
        read_tsv(path, TASKS["qqp"], labelled=False)


RTE_HEADER = b"index\tsentence1\tsentence2\tlabel\n"
STSB_HEADER = b"sentence1\tsentence2\tscore\n"
FAULTS = {
    "too few fields": ("rte", RTE_HEADER + b"0\ta\tb\tentailment\n1\ta\tb\n", "line 3: found 3 f"),
    "too many fields": ("rte", RTE_HEADER + b"0\ta\tb\tc\tentailment\n", "line 2: found 5 fields"),
    "blank line": ("rte", RTE_HEADER + b"\n0\ta\tb\tentailment\n", "line 2: found 1 fields"),
    "unknown label": ("rte", RTE_HEADER + b"0\ta\tb\tperhaps\n", "line 2: found 'perhaps'.*'not_e"),
    "empty label": ("rte", RTE_HEADER + b"0\ta\tb\t\n", "line 2: found ''"),
    "no label column": ("rte", b"index\tsentence1\tsentence2\n", "line 1: .*'label' is missing"),
    "no text column": ("rte", b"index\tsentence1\tlabel\n", "'sentence2' is missing"),
    "empty": ("rte", b"", "the file is empty"),
    "blank": ("rte", b"\xef\xbb\xbf\r\n\n", "the file is empty"),
    "header alone": ("rte", RTE_HEADER, "no rows"),
    "Latin-1": ("rte", RTE_HEADER + b"0\ta\tb\tentailment\n1\tcaf\xe9", "line 3: .*0xe9.*UTF-8"),
    "no number": ("stsb", STSB_HEADER + b"a\tb\thigh\n", "line 2: found 'high'.*from 0 to 5"),
    "not a number": ("stsb", STSB_HEADER + b"a\tb\t1.0\na\tb\tnan\n", "line 3: found 'nan'"),
    "score too high": ("stsb", STSB_HEADER + b"a\tb\t5.001\n", "line 2: found '5.001'"),
    "score below zero": ("stsb", STSB_HEADER + b"a\tb\t-0.1\n", "line 2: found '-0.1'"),
    "a header in CoLA": ("cola", b"source\tlabel\tmark\tsentence\n", "line 1: found 'label'"),
    "another task's file": ("cola", b"a sentence\t1\n", "line 1: found 2 fields; expected 4"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_faulty_files_are_named_with_their_line(tmp_path, fault):
    name, content, message = FAULTS[fault]
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"(?s)train.tsv.*{message}"):
        read_tsv(path, TASKS[name], labelled=True)


def test_missing_files_and_splits(tmp_path):
    write_task(tmp_path, "rte")
    with pytest.raises(DataError, match=r"RTE.test.tsv: no such file"):
        load_task("rte", tmp_path, ["test"])
    with pytest.raises(DataError, match="no split 'dev'; it has train, validation, test"):
        load_task("rte", tmp_path, ["dev"])
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"RTE.dev.tsv: no such file"):
        load_task("rte", tmp_path)
    write_task(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(DataError, match=r"dev_mismatched.tsv: no such file"):
        load_task("mnli", tmp_path)
    with pytest.raises(DataError, match=r"--data .*: holds no data for task qqp.*QQP/train.tsv"):
        load_task("qqp", tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        load_task("rte", tmp_path / "absent")
    with pytest.raises(UserError, match=r"--task rte2: .*cola, .*wnli"):
        load_task("rte2", tmp_path)


# --- the hub and save_to_disk ------------------------------------------------------------------


def hub_tables(name, label=None):
    """A DatasetDict with the hub's columns; test labels are -1, as on the hub."""
    import datasets

    task = TASKS[name]
    if label is None:
        label = (
            datasets.Value("float32")
            if not task.classes
            else datasets.ClassLabel(names=list(task.classes))
        )
    features = {column: datasets.Value("string") for column in task.text_columns}
    features = datasets.Features(features | {"label": label, "idx": datasets.Value("int32")})

    def table(labels):
        n = len(labels)
        texts = {c: [f"{c} {i}" for i in range(n)] for c in task.text_columns}
        rows = texts | {"label": labels, "idx": list(range(n))}
        return datasets.Dataset.from_dict(rows, features=features)

    labels = list(LABELS[name].values())
    return datasets.DatasetDict(
        {split: table(labels) for split in task.required_splits}
        | {split: table([-1, -1]) for split in task.test_splits}
    )


def check_hub_examples(name, loaded):
    task = TASKS[name]
    assert tuple(loaded) == task.splits
    for split in task.required_splits:
        n = len(LABELS[name])
        assert loaded[split].labels == list(LABELS[name].values())
        assert loaded[split].first == [f"{task.text_columns[0]} {i}" for i in range(n)]
        if len(task.text_columns) == 1:
            assert loaded[split].second is None
        else:
            assert loaded[split].second == [f"{task.text_columns[1]} {i}" for i in range(n)]
    assert all(loaded[split].labels is None for split in task.test_splits)


@EVERY_TASK
def test_hub(monkeypatch, name):
    import datasets

    calls = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or hub_tables(name)
    )
    check_hub_examples(name, load_task(name, None))
    assert calls == [(("nyu-mll/glue", name), {})]


@pytest.mark.parametrize("name", ["sst2", "stsb", "mnli"])
def test_save_to_disk(tmp_path, name):
    hub_tables(name).with_format("torch").save_to_disk(tmp_path / name)
    check_hub_examples(name, load_task(name, tmp_path))
    check_hub_examples(name, load_task(name, tmp_path / name))
    (next((tmp_path / name / "train").glob("*.arrow"))).write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read as a DatasetDict"):
        load_task(name, tmp_path)


def test_saved_classes_are_matched_by_name(tmp_path):
    import datasets

    # 0 is written, and means the first name given: the hub's index 1
    names = ["not_entailment", "entailment"]
    hub_tables("rte", datasets.ClassLabel(names=names)).save_to_disk(tmp_path / "a")
    assert load_task("rte", tmp_path / "a", ["train"])["train"].labels == [1, 0]
    hub_tables("rte", datasets.ClassLabel(names=["no", "yes"])).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match="train: found the classes no, yes; task rte expects ent"):
        load_task("rte", tmp_path / "b")
    for split, table in (tables := hub_tables("rte")).items():
        words = [TASKS["rte"].classes[label] for label in table["label"]]
        tables[split] = table.remove_columns("label").add_column("label", words)
    tables.save_to_disk(tmp_path / "words")
    assert load_task("rte", tmp_path / "words", ["train"])["train"].labels == [0, 1]
    hub_tables("rte", datasets.Value("int64")).save_to_disk(tmp_path / "c")
    assert load_task("rte", tmp_path / "c", ["train"])["train"].labels == [0, 1]


def test_faults_of_saved_sets(tmp_path):
    import datasets

    tables = hub_tables("rte", datasets.Value("int64"))
    tables["train"] = tables["test"]
    with pytest.raises(DataError, match="train, row 0: found the label -1; expected one of entail"):
        _load_saved(tables, "rte", tmp_path / "unlabelled")
    tables["train"] = tables["validation"].remove_columns("sentence2")
    with pytest.raises(
        DataError, match=r"train: found the columns .* expects sentence1, sentence2"
    ):
        _load_saved(tables, "rte", tmp_path / "columns")
    texts = {"sentence1": ["a"], "sentence2": [None], "label": [0], "idx": [0]}
    tables["train"] = datasets.Dataset.from_dict(texts, features=tables["test"].features)
    with pytest.raises(DataError, match="train, row 0: found None in 'sentence2'"):
        _load_saved(tables, "rte", tmp_path / "null")
    del tables["validation"]
    with pytest.raises(DataError, match=r"found the splits .*; expected 'validation'"):
        _load_saved(tables, "rte", tmp_path / "split")
    scores = hub_tables("stsb")
    scores["train"] = scores["train"].map(lambda row: {"label": row["label"] + 1})
    with pytest.raises(DataError, match=r"train, row 2: found the label 6.0; expected a number"):
        _load_saved(scores, "stsb", tmp_path / "scores")


def test_an_empty_split_of_the_hub(monkeypatch):
    import datasets

    tables = hub_tables("rte")
    tables["train"] = tables["train"].select([])  # save_to_disk cannot carry it over
    monkeypatch.setattr(datasets, "load_dataset", lambda *args: tables)
    with pytest.raises(DataError, match="nyu-mll/glue, rte, train: found no rows"):
        load_task("rte", None)


def _load_saved(tables, name, folder):
    tables.save_to_disk(folder)
    return load_task(name, folder)


@pytest.mark.parametrize("error", [ConnectionError, ValueError, RuntimeError])
def test_hub_that_cannot_be_reached_is_the_users_to_mend(monkeypatch, error):
    import datasets

    def unreachable(*args):
        raise error("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"Couldn't reach it.*--data DIR.*RTE/train.tsv") as caught:
        load_task("rte", None)
    assert isinstance(caught.value.__cause__, error)


def test_offline_variable_is_honoured(tmp_path):
    script = (
        "import sys; from bayeslora_cli.tasks.sources.loading import load_task\n"
        "from bayeslora_cli.errors import UserError\n"
        "assert not {'datasets', 'transformers', 'sklearn'} & set(sys.modules)\n"
        "try: load_task('rte', None)\n"
        "except UserError as error: print(error)"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    env.pop("HF_DATASETS_CACHE", None)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search("OfflineModeIsEnabled|Offline mode is enabled", done.stdout)
    assert "--data DIR" in done.stdout


def test_without_the_package_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"'datasets' cannot be imported.*--data DIR"):
        load_task("rte", None)


# --- the real files ----------------------------------------------------------------------------

REAL = {
    "rte": ("glue", {"train": 2490, "validation": 277, "test": 3000}),
    "mrpc": ("glue", {"train": 3668, "validation": 408, "test": 1725}),
    "cola": ("glue", {"train": 8551, "validation": 1043, "test": 1063}),
    "stsb": ("glue", {"train": 5749, "validation": 1500, "test": 1379}),
    "sst2": ("glue", {"train": 67349, "validation": 872, "test": 1821}),
    "mnli": (
        "glue-sub",
        {"train": 13391, "validation_matched": 7469, "validation_mismatched": 1000},
    ),
    "qnli": ("glue-sub", {"train": 10293, "validation": 5463}),
}
# the validation split's most frequent class and its rows: published majority baselines of
# 52.7, 68.4, 69.1 and 50.9 %
MAJORITY = {"rte": (0, 146), "mrpc": (1, 279), "cola": (1, 721), "sst2": (1, 444)}


@pytest.mark.realdata
@pytest.mark.parametrize("name", list(REAL))
def test_real_files(name):
    folder, counts = REAL[name]
    folder = GLUE if folder == "glue" else GLUE.parent / folder
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    task = TASKS[name]
    loaded = load_task(name, folder)
    assert {split: len(examples) for split, examples in loaded.items()} == counts
    assert folder.name == "glue-sub" or counts["train"] == task.train_size
    for split in task.required_splits:
        examples = loaded[split]
        assert all(text.strip() for text in examples.first)
        assert (examples.second is None) == (len(task.tsv_text) == 1)
        if task.classes:
            balance = Counter(examples.labels)
            assert set(balance) == set(range(len(task.classes)))
            assert min(balance.values()) > 0.25 * len(examples)
    if name in MAJORITY:
        label, count = MAJORITY[name]
        assert Counter(loaded["validation"].labels).most_common(1) == [(label, count)]
