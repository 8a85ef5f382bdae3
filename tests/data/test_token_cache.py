"""Tokens on disk are those that would be made, whoever made them and whatever became of a file."""

from __future__ import annotations

import os
import random
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast

from bayeslora_cli.data import token_cache
from bayeslora_cli.data.encodings import dialogues
from bayeslora_cli.data.token_cache import encode_once
from bayeslora_cli.data.tokenization import encode
from bayeslora_cli.models.backbones.identity import VARIABLE
from bayeslora_cli.tasks.dialogue import Turn, to_text
from bayeslora_cli.tasks.task import Examples
from tests.conftest import WORDS, tiny_tokenizer
from tests.support.chats import CHATML, MARKED, byte_tokenizer

PAIRS = Examples(["w1 w2 w3", "w4"], ["w5 w6", ""], None)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, which nobody has made yet."""
    place = tmp_path / "new" / "cache"
    monkeypatch.setenv(VARIABLE, str(place))
    return place


@pytest.fixture
def made(monkeypatch):
    """How many rows each call has tokenised, but for the one that is always asked for."""
    found = []

    def counting(examples, tokenizer, max_length):
        found.append(len(examples))
        return encode(examples, tokenizer, max_length)

    monkeypatch.setattr(token_cache, "encode", counting)
    return found


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) and found[name].dtype == value.dtype
        for name, value in expected.items()
    )


def files(cache):
    return list(cache.iterdir())


sentences = st.lists(st.sampled_from([*WORDS, "é", "\U0001f600", "\0"]), max_size=9).map(" ".join)


@given(
    rows=st.lists(st.tuples(sentences, sentences), min_size=1, max_size=20),
    paired=st.booleans(),
    types=st.booleans(),
    length=st.integers(4, 12),
)
def test_what_is_read_is_what_would_be_made(rows, paired, types, length, tmp_path_factory):
    tokenizer = tiny_tokenizer()
    if types:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    first, second = map(list, zip(*rows, strict=True))
    examples = Examples(first, second if paired else None, None)
    expected = encode(examples, tokenizer, length)
    assert ("token_types" in expected) == types
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        for _ in range(2):
            assert same(encode_once(examples, tokenizer, length), expected)


def test_made_once_and_again_for_others(cache, made):
    def other_words():
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["w1 w2"])
        return tokenizer

    def from_the_left():
        tokenizer = tiny_tokenizer()
        tokenizer.truncation_side = "left"
        return tokenizer

    def with_types():
        tokenizer = tiny_tokenizer()
        tokenizer.model_input_names = ["input_ids", "token_type_ids"]
        return tokenizer

    def with_special_tokens_as_text():
        tokenizer = tiny_tokenizer()
        tokenizer.split_special_tokens = True
        return tokenizer

    wanted = [
        (PAIRS, tiny_tokenizer, 5),
        (PAIRS, with_types, 5),
        (PAIRS, with_special_tokens_as_text, 5),
        (PAIRS, tiny_tokenizer, 6),
        (PAIRS, other_words, 5),
        (PAIRS, from_the_left, 5),
        (Examples(["w4", "w1 w2 w3"], ["", "w5 w6"], None), tiny_tokenizer, 5),  # another order
        (Examples(["w1 w2 w3 ", "w4"], ["w5 w6", ""], None), tiny_tokenizer, 5),
        (Examples(["w1 w2 w3w4", ""], ["w5 w6", ""], None), tiny_tokenizer, 5),  # the same joined
        (Examples(PAIRS.first, None, None), tiny_tokenizer, 5),
        (Examples(PAIRS.first, ["", ""], None), tiny_tokenizer, 5),
    ]
    for again in (False, True):
        made.clear()
        for examples, tokenizer, length in wanted:
            expected = encode(examples, tokenizer(), length)
            assert same(encode_once(examples, tokenizer(), length), expected)
        assert made == ([1] if again else [2]) * len(wanted)
    assert len(files(cache)) == len(wanted), "and no locks"


def test_labels_do_not_count(cache, made):
    for labels in ([0, 1], [1, 0], None):
        encode_once(Examples(PAIRS.first, PAIRS.second, labels), tiny_tokenizer(), 5)
    assert made == [2, 1, 1]


def test_the_tokenizer_is_left_as_one_that_has_tokenised(cache):
    """Its settings of the last call are saved with it, and are not what counts for the next."""
    tokenizer = tiny_tokenizer()
    for _ in range(2):
        tokenizer(["w1"], truncation=True, max_length=3, padding="max_length")
        encode_once(PAIRS, tokenizer, 5)
        assert len(files(cache)) == 1
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
        assert tokenizer.backend_tokenizer.padding is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other rows"])
def test_a_damaged_file_is_made_again(cache, made, damage):
    examples = Examples([" ".join(WORDS)] * 50, None, None)
    expected = encode_once(examples, tiny_tokenizer(), 60)
    (path,) = files(cache)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        place = random.Random(0).randrange(len(whole) // 2, len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    else:
        encode_once(PAIRS, tiny_tokenizer(), 5)
        (other,) = set(files(cache)) - {path}
        other.replace(path)
    made.clear()
    assert same(encode_once(examples, tiny_tokenizer(), 60), expected)
    assert made[-1] == 50
    assert path.read_bytes() == whole


def test_a_file_that_goes_while_it_is_read(cache, made, monkeypatch):
    """Another process may need the room: safetensors' own error, and torch's, which comes after."""
    encode_once(PAIRS, tiny_tokenizer(), 5)
    for error in (FileNotFoundError, RuntimeError):

        def gone(*arguments, error=error):
            raise error

        monkeypatch.setattr(token_cache, "safe_open", gone)
        assert same(encode_once(PAIRS, tiny_tokenizer(), 5), encode(PAIRS, tiny_tokenizer(), 5))
    assert made == [2, 2, 2]


@pytest.mark.parametrize("reason", ["a file in the way", "no room", "nobody may look there"])
def test_where_nothing_can_be_kept(cache, made, reason, monkeypatch):
    if reason == "a file in the way":
        cache.parent.write_text("")
    elif reason == "nobody may look there":
        monkeypatch.setenv(VARIABLE, str(cache / ("x" * 300)))
    else:

        def full(*arguments, **keywords):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(token_cache, "save_file", full)
    for _ in range(2):
        assert same(encode_once(PAIRS, tiny_tokenizer(), 5), encode(PAIRS, tiny_tokenizer(), 5))
    assert made == [2, 2]


def test_none_where_there_is_to_be_none(monkeypatch, made, tmp_path):
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        encode_once(PAIRS, tiny_tokenizer(), 5)
    assert made == [2, 2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "value", "place"),
    [
        ("XDG_CACHE_HOME", "/caches", "caches/bayeslora"),
        ("HOME", "", ".cache/bayeslora"),
        (VARIABLE, "/mine", "mine"),
        (VARIABLE, "~/mine", "mine"),
    ],
)
def test_its_place(monkeypatch, tmp_path, where, value, place):
    for name in (VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(where, value if value.startswith("~") else f"{tmp_path}{value}")
    encode_once(PAIRS, tiny_tokenizer(), 5)
    place = tmp_path / place
    assert len(files(place)) == 1
    assert place.stat().st_mode & 0o777 == 0o700, "rows may be nobody else's business"


def test_tokenizers_that_are_not_known_well(cache, made):
    """Code of somebody else's may do anything."""

    class Own(type(tiny_tokenizer())):
        pass

    own, part = tiny_tokenizer(), tiny_tokenizer()
    own.__class__ = Own
    part.backend_tokenizer.pre_tokenizer = PreTokenizer.custom(BySpaces())
    for tokenizer in (own, part, own, part):
        assert same(encode_once(PAIRS, tokenizer, 5), encode(PAIRS, tiny_tokenizer(), 5))
    assert made == [2] * 4


class BySpaces:
    """A part of a tokenizer in Python, as RoFormer has one."""

    def pre_tokenize(self, text):
        text.split(lambda _, part: part.split(" ", "removed"))


def test_what_was_not_read_for_longest_goes_first(cache, made, monkeypatch):
    def ask(number):
        """A row of its own in a file of its own, made at a time that `number` says."""
        before = set(files(cache)) if cache.exists() else set()
        encode_once(Examples([f"w{number}"], None, None), tiny_tokenizer(), 5)
        for path in set(files(cache)) - before:
            os.utime(path, (100 + number,) * 2)

    ask(0)
    (first,) = files(cache)
    left = cache / f".{'0' * 64}.safetensors.tmp"  # by a process that was killed
    foreign = [cache / "model.safetensors", cache / f"{'0' * 64}.safetensors.old"]
    for path in (left, *foreign):
        path.write_bytes(bytes(first.stat().st_size))
        os.utime(path, (50, 50))
    monkeypatch.setattr(token_cache, "LIMIT", 3 * first.stat().st_size)
    ask(1)
    (second,) = set(files(cache)) - {first, left, *foreign}
    ask(2)
    assert not left.exists()
    ask(0)  # so it was read just now
    ask(3)
    assert len(files(cache)) == 3 + len(foreign)
    assert first.exists()
    assert not second.exists()
    assert all(path.exists() for path in foreign)


@pytest.fixture
def saved(tmp_path):
    """The tiny tokenizer's directory."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def start(cache, saved, tmp_path, warm_process):
    """Start processes that want `PAIRS`: (the first of them, what they say until the last ends)."""
    os.mkfifo(tmp_path / "said")
    with ExitStack() as opened:

        def start_them(seconds, processes=1):
            process = warm_process.start(
                "tests.support.token_makers", saved, seconds, processes,
                stdout=str(tmp_path / "said"), **{VARIABLE: str(cache)},
            )  # fmt: skip
            return process, opened.enter_context(open(tmp_path / "said"))

        yield start_them


def test_of_processes_that_want_the_same_one_makes_it(cache, start):
    process, said = start(0.5, processes=3)
    expected = str(encode(PAIRS, tiny_tokenizer(), 5)["tokens"].tolist())
    assert said.read().splitlines() == ["made", expected, expected, expected]
    assert process.wait() == 0
    assert len(files(cache)) == 1


def test_a_process_that_dies_over_it_keeps_nobody_waiting(cache, made, saved, start):
    process, said = start(600)
    assert said.readline() == "made\n"
    process.kill()
    process.wait()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    assert same(encode_once(PAIRS, tokenizer, 5), encode(PAIRS, tiny_tokenizer(), 5))
    assert made == [2]
    assert len(files(cache)) == 1, "its lock is gone as well"


def test_tokens_of_dialogues_depend_on_the_template(cache):
    rows = Examples([to_text((Turn("user", "a", False), Turn("assistant", "b", True)))], None, [0])
    for template in (CHATML, MARKED, CHATML.replace("\n", " ")):
        tokenizer = byte_tokenizer(template)
        expected = dialogues.encode(rows, tokenizer, 50)
        for _ in range(2):
            assert same(encode_once(rows, tokenizer, 50, dialogues.encode), expected)
    assert len(files(cache)) == 3
