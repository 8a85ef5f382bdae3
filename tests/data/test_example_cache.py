"""Rows and tokens are read once for runs that want the same, and never taken for others'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.data import example_cache
from bayeslora_cli.data.example_cache import ExampleCache
from tests.conftest import tiny_tokenizer, write_rte


@pytest.fixture
def config(rte):
    return RunConfig(task="rte", data=rte, model="a", max_length=32)


@pytest.fixture
def counts(monkeypatch):
    """How often data were read and splits tokenised."""
    found = {"load_examples": 0, "tokenise": 0}

    def counting(name, real):
        def call(*arguments, **keywords):
            found[name] += 1
            return real(*arguments, **keywords)

        return call

    for name in found:
        monkeypatch.setattr(example_cache, name, counting(name, getattr(example_cache, name)))
    return found


def read(cache, config):
    task, examples = cache.examples(config)
    return cache.tokens(config, task, examples, tiny_tokenizer())


def test_once_for_seeds_and_methods(config, counts):
    cache = ExampleCache()
    first = read(cache, config)
    first.pop("train")  # a setup takes its own out
    again = read(cache, replace(config, seed=5, criterion="magnitude", lr=3.0))
    assert again.keys() == {"train", "validation"}
    assert counts == {"load_examples": 1, "tokenise": 2}


@pytest.mark.parametrize("other", ["max_length", "model", "data"])
def test_anew_for_others(config, counts, other, tmp_path):
    elsewhere = str(write_rte(tmp_path, seed=1)) if other == "data" else config.data
    changed = {"max_length": 8, "model": "b", "data": elsewhere}[other]
    cache = ExampleCache()
    read(cache, config)
    wanted = replace(config, **{other: changed})
    found, alone = read(cache, wanted), read(ExampleCache(), wanted)
    for split, tokens in alone.items():
        assert torch.equal(found[split].tokens, tokens.tokens)
        assert torch.equal(found[split].labels, tokens.labels)
    assert counts["tokenise"] == 6


def test_two_tasks_in_turn(config, tmp_path):
    other = replace(config, data=str(write_rte(tmp_path, seed=1)))
    cache = ExampleCache()
    for wanted in (config, other, config, other):
        alone = read(ExampleCache(), wanted)
        assert torch.equal(read(cache, wanted)["train"].tokens, alone["train"].tokens)
