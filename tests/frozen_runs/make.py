"""Train the frozen runs and write down what this build says of them, anew and in place.

    OMP_NUM_THREADS=1 python -m tests.frozen_runs.make

Run by hand, at the root of the repository, with the build that all later ones are held against
(version 0.1.0, before its modules were put into folders). It takes two minutes. To run it with a
later build gives up what the test holds: say in the commit why that must be.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from . import cases, kept

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = tuple(f"w{i}" for i in range(24))
DEMO = (  # words that decide the demo's rows
    "the", "a", "of", "and", "but", "not", "did", "none", "all", "some", "no", "every", "nobody",
    "everybody", "only", "Anna", "Tom", "Mary",
)  # fmt: skip
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 24,
    "initializer_range": 0.5,  # at the usual 0.02 so small a network says the same of all rows
    "pad_token_id": 0,
}
BACKBONES = {
    "bert": {},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 4,
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "pooler_hidden_size": 8,
    },
}


# ---- inputs


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, pairs joined as BERT joins them."""
    words = (*SPECIAL, *WORDS, *DEMO)
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def write_inputs(directory: Path) -> None:
    """Backbones with random weights, and tables."""
    shutil.rmtree(directory, ignore_errors=True)
    for kind, more in BACKBONES.items():
        torch.manual_seed(7)
        config = AutoConfig.for_model(kind, vocab_size=64, **SIZES, **more)
        place = directory / f"tiny-{kind.partition('-')[0]}"
        AutoModel.from_config(config).save_pretrained(place)
        tokenizer().save_pretrained(place)
    write_tables(directory, random.Random(0))
    (directory / "mine.toml").write_text('model = "no/such-model"\nepochs = 2\nlr = 0.5\n')


def write_tables(directory: Path, chance: random.Random) -> None:
    """Topics, decided by the first word; scores, by how many words two texts share."""

    def text() -> list[str]:
        return chance.choices(WORDS, k=chance.randint(2, 7))

    for name, count in (("topics", 48), ("topics-dev", 32)):
        texts = [text() for _ in range(count)]
        topics = [("sport", "music", "law")[int(words[0][1:]) % 3] for words in texts]
        lines = [f"{' '.join(w)},{t}" for w, t in zip(texts, topics, strict=True)]
        (directory / f"{name}.csv").write_text("\n".join(["text,label", *lines, ""]))
    for name, count in (("scores", 48), ("scores-dev", 32)):
        pairs = [(text(), text()) for _ in range(count)]
        lines = [
            f"{' '.join(a)},{' '.join(b)},{len(set(a) & set(b)) + chance.random():.3f}"
            for a, b in pairs
        ]
        (directory / f"{name}.csv").write_text("\n".join(["sentence1,sentence2,label", *lines, ""]))
    lines = [f"{t},{t},{' '.join(text())}" for t in (" ".join(text()) for _ in range(6))]
    header = "text,sentence1,sentence2"
    (directory / "rows.csv").write_text("\n".join([header, *lines, ""]))


# ---- runs


def train(name: str, root: Path, *, stopped: bool = False) -> Path:
    """Train a run below `root`, in a process of its own; `stopped` at a checkpoint on its way."""
    run = kept.directory(name, root)
    child = os.fork()
    if child == 0:
        if stopped:
            stop_at_checkpoint(f"step-{cases.UNTIL:06}", name == cases.KILLED)
        said = kept.bayeslora("train", *kept.options(name, root), "--output", root / "runs")
        if said.code not in (0, 75):
            print(said.err, file=sys.stderr, flush=True)
        os._exit(said.code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expected = (-signal.SIGKILL if name == cases.KILLED else 75) if stopped else 0
    assert code == expected, f"{name}: exit code {code}"
    if stopped:
        assert not (run / "result.json").exists()
        states = sorted(run.glob("checkpoint/step-*"))
        for earlier in states[:-1]:  # the newest is what a resume reads
            shutil.rmtree(earlier)
    return run


def stop_at_checkpoint(name: str, kill: bool) -> None:
    """Have this process get a signal when it gives a checkpoint its name, or just before."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(arguments[1]).name == name:
            os.kill(os.getpid(), signal.SIGKILL if kill else signal.SIGTERM)

    sys.addaudithook(watch)


def write(path: Path, value: dict[str, dict[str, Any]]) -> None:
    """JSON with a line an answer, reals to nine digits."""
    parts = []
    for name, answers in value.items():
        lines = [
            f"{json.dumps(k)}: {json.dumps(short(v), ensure_ascii=False)}"
            for k, v in answers.items()
        ]
        parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def short(value: Any) -> Any:
    """A JSON value with its reals to nine digits: what is compared has five."""
    if isinstance(value, dict):
        return {k: short(v) for k, v in value.items()}
    if isinstance(value, list):
        return [short(item) for item in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary).resolve()
        os.environ["BAYESLORA_CACHE"] = str(home / "cache")
        shutil.rmtree(kept.DATA, ignore_errors=True)
        write_inputs(kept.INPUTS)
        root, other = kept.put_inputs(home / "root"), kept.put_inputs(home / "other")
        runs = {}
        for name in cases.RUNS:
            runs[name] = train(name, root)
            kept.keep_run(runs[name], root, kept.DATA / name / "finished")
            unfinished = train(name, other, stopped=True)
            kept.keep_run(unfinished, other, kept.DATA / name / "unfinished")
            said, found = kept.resume(name, kept.put_inputs(home / name))
            assert said.code == 0, said.err
            expected = kept.finished_contents(kept.DATA / name / "finished", kept.ROOT)
            assert (lines := kept.differences(found, expected)) == [], lines
            print(name, "trained, stopped and resumed", flush=True)
        for name, run in runs.items():
            answers = {q: kept.ask(name, run, root, q) for q in cases.QUESTIONS}
            exports = {form: kept.export(name, run, root, form) for form in cases.exports(name)}
            write(kept.DATA / name / "said.json", {"answers": answers, "exports": exports})
            print(name, "asked and exported", flush=True)
        first = next(iter(runs))
        left = kept.put_run(first, "unfinished", kept.put_inputs(home / "left"))
        write(
            kept.DATA / "said.json",
            {
                "together": {
                    q: kept.together(root, list(runs.values()), q) for q in cases.TOGETHER
                },
                "directories": {given: kept.planned(root, given) for given in cases.DIRECTORIES},
                "commands": {given: kept.printed_commands(given) for given in cases.COMMANDS},
                "flags": {c: kept.flags(c) for c in ("train", "eval", "inspect-ranks", "export")},
                "presets": {"names": kept.presets()},
                "codes": {c: kept.exit_code(root, runs[first], left, c) for c in cases.CODES},
            },
        )
    size = sum(path.stat().st_size for path in kept.DATA.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {kept.DATA}")


if __name__ == "__main__":
    main()
