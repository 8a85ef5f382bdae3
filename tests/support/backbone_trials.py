"""What a user does with a backbone, in a few steps: train, evaluate, export, open the exports.

An export is opened by the code in its model card, which uses transformers and PEFT only, and is
compared with the run row by row and in batches, with the export's own tokenizer.

    python -m tests.support.backbone_trials try RESULTS.jsonl [--onnx] [--kinds KIND ...]
    python -m tests.support.backbone_trials page RESULTS.jsonl

The first appends a line per architecture to a file; the second writes the table of
docs/backbones.md from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import bayeslora_cli as bl
from bayeslora_cli.errors import BayesloraError
from tests.support.tiny_models import KINDS, WORDS, save_tiny_model

FORMATS = ("adalora", "lora", "merged")
SAME = 1e-4
"""Largest difference of a logit, relative to the largest if above 1, between two right models."""
ADVICE = "; --format merged needs no PEFT"
"""The end of the message about an adapter that PEFT opens with other predictions."""
NOT_PEFTS = "refused, as PEFT opens it with other predictions"
PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"
MARKS = ("<!-- table of architectures -->", "<!-- end of the table -->")


@dataclass
class Outcome:
    """What became of an architecture."""

    kind: str
    """Its `model_type`."""
    absent: str | None = None
    """Why there is no tiny model; None: there is one."""
    refused: str | None = None
    """What `train` says; None: it trains."""
    warned: list[str] = field(default_factory=list)
    """What `train` warns of."""
    exports: dict[str, float | str] = field(default_factory=dict)
    """By format, and `adapter` for the run's own: the largest difference of a logit from the run,
    or why there is no export."""
    largest: float = 0.0
    """The run's largest logit."""
    effect: float = 0.0
    """Largest change of a logit by the adapters: a smaller difference would prove nothing."""
    padding: float = 0.0
    """Largest change of transformers' own logits when rows are padded to the longest of a batch."""
    failure: str | None = None
    """Traceback of an error that is not one message."""

    @property
    def bound(self) -> float:
        """Largest difference between two right models."""
        return SAME * max(1.0, self.largest)

    def wrong(self) -> dict[str, float | str]:
        """Return the exports that predict otherwise than the run."""
        return {n: d for n, d in self.exports.items() if isinstance(d, float) and d > self.bound}

    def missing(self) -> dict[str, float | str]:
        """Return the exports that are refused, with the reasons."""
        return {name: why for name, why in self.exports.items() if isinstance(why, str)}


def write_rows(directory: Path) -> dict[str, str]:
    """Write the files of a task; return the options that name them."""
    names = {"train_file": rows(24), "eval_file": rows(12, start=3)}
    for name, found in names.items():
        with (directory / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *found])
    return {name: str(directory / f"{name}.csv") for name in names}


def rows(count: int, start: int = 0) -> list[tuple[str, str]]:
    """Make texts of 2 to 8 words, and labels."""
    return [
        (
            " ".join(WORDS[(i * 7 + j * 5 + start) % len(WORDS)] for j in range(2 + i % 7)),
            ("no", "yes")[i % 2],
        )
        for i in range(count)
    ]


def try_kind(kind: str, directory: Path, formats: Sequence[str] = FORMATS) -> Outcome:
    """Train a tiny model of an architecture for 3 steps, export it, and compare."""
    try:
        save_tiny_model(kind, directory / "model")
    except ImportError as error:
        return Outcome(kind=kind, absent=_first_line(error))
    return try_model(kind, directory, formats)


def try_model(
    kind: str, directory: Path, formats: Sequence[str] = FORMATS, **options: Any
) -> Outcome:
    """Do the same with the model in `directory / "model"`."""
    outcome = Outcome(kind=kind)
    defaults = {
        **write_rows(directory), "model": str(directory / "model"), "max_steps": 3,
        "batch_size": 8, "optimizer": "adamw", "lr": 0.1, "device": "cpu",
        "output": str(directory / "runs"),
    }  # fmt: skip
    try:
        with _warnings() as outcome.warned:
            run = bl.train(**defaults | options)
    except BayesloraError as error:
        outcome.refused = str(error).replace(str(directory / "model"), "DIR")
        return outcome
    found, trained = (x.metrics["validation"]["nll"] for x in (run.evaluate(), run))
    assert math.isclose(found, trained, rel_tol=1e-6)
    comparison = Comparison(run, outcome)
    outcome.exports["adapter"] = comparison.difference(run.path)
    for name in formats:
        try:
            outcome.exports[name] = comparison.difference(run.export(name).path)
        except BayesloraError as error:
            outcome.exports[name] = _first_line(error)
    return outcome


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the log warns of."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bayeslora")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


class Comparison:
    """Compares opened exports with a run, on the same rows alone and in padded batches."""

    def __init__(self, run: bl.Run, outcome: Outcome) -> None:
        texts = [text for text, _ in rows(9, start=3)]
        self.chosen = [texts[:4], texts[4:], *([text] for text in texts)]
        self.outcome = outcome
        network, tokenizer, _ = run.load()
        network.module.eval()
        bank = network.bank
        without = bank.mean.clone()
        for name, segment in bank.segments.items():
            if segment.role == "adapter" and not name.endswith(".lora_A"):
                segment.view(without).zero_()
        self.batches = [_batch(tokenizer, chosen) for chosen in self.chosen]
        with torch.no_grad():
            with bank.at_mean():
                self.ours = [network.logits(batch) for batch in self.batches]
            with bank.showing(without):
                effect = network.logits(self.batches[0]) - self.ours[0]
        outcome.effect = _most(effect)
        outcome.largest = max(map(_most, self.ours))

    def difference(self, directory: Path) -> float:
        """Open a directory as its card says; return the largest difference of a logit."""
        names = opened(directory)
        logits, theirs = _logits(names), []
        for chosen, batch in zip(self.chosen, self.batches, strict=True):
            found = _batch(names["tokenizer"], chosen)
            assert found.keys() == batch.keys()
            assert all(torch.equal(found[name], batch[name]) for name in batch)
            theirs.append(logits(found))
        padded, alone = torch.cat(theirs[:2]), torch.cat(theirs[2:])
        self.outcome.padding = max(self.outcome.padding, _most(padded - alone))
        return max(_most(a - b) for a, b in zip(theirs, self.ours, strict=True))


def _batch(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))


def _most(values: torch.Tensor) -> float:
    return float(values.abs().max())


def opened(directory: Path) -> dict[str, Any]:
    """Run the code of a model card; return its names."""
    card = (directory / "README.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert match is not None
    code = match[1].replace("…", "red cat").replace("print(logits)\n", "")
    names: dict[str, Any] = {}
    with chdir(directory):
        exec(compile(code, "README.md", "exec"), names)
    return names


def _logits(names: dict[str, Any]) -> Any:
    """Return the function from a batch to logits (b, outputs) of the card's model."""
    if "session" in names:
        session = names["session"]
        taken = {i.name for i in session.get_inputs()}

        def logits(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            feed = {name: value.numpy() for name, value in batch.items() if name in taken}
            return torch.from_numpy(session.run(["logits"], feed)[0])

        return logits
    return torch.no_grad()(lambda batch: names["model"](**batch).logits)


# ---- the page


def page(outcomes: Sequence[Outcome]) -> str:
    """Return docs/backbones.md with the table of the outcomes."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    trained = sum(o.refused is None and o.absent is None for o in outcomes)
    said = (
        f"transformers {version('transformers')} offers {len(outcomes)} architectures for sequence "
        f"classification; {trained} of them train (PEFT {version('peft')}, torch "
        f"{version('torch').partition('+')[0]})."
    )
    formats = [n for n in (*FORMATS, "onnx") if any(n in o.exports for o in outcomes)]
    titles = ["architecture", "trains", *(f"`{name}`" for name in formats), "remark"]
    table = [
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(titles)}",
        *(_row(outcome, formats) for outcome in outcomes),
    ]
    return "\n".join([f"{before}{MARKS[0]}", "", said, "", *table, "", f"{MARKS[1]}{after}"])


def _row(outcome: Outcome, formats: Sequence[str]) -> str:
    trains = outcome.absent is None and outcome.refused is None
    cells = [outcome.kind, "yes" if trains else "no"]
    for name in formats:
        found = outcome.exports.get(name)
        cells.append("" if found is None else "no" if isinstance(found, str) else "yes")
    remark = "; ".join(_remarks(outcome)).replace("|", "\\|")
    return f"| {' | '.join([*cells, remark])} |"


def _remarks(outcome: Outcome) -> Iterator[str]:
    why = outcome.absent or outcome.refused
    if why is not None:
        yield why.partition(". ")[0]
    for name, reason in outcome.missing().items():
        yield f"`{name}`: {NOT_PEFTS if reason.endswith(ADVICE) else reason}"
    if outcome.padding > outcome.bound:
        yield f"padding changes a logit by up to {outcome.padding:.0e}"


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("try", "page"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    asked = parser.parse_args()
    if asked.what == "page":
        lines = asked.results.read_text(encoding="utf-8").splitlines()
        found = {o["kind"]: o for o in map(json.loads, lines)}
        outcomes = [Outcome(**found[kind]) for kind in KINDS]
        PAGE.write_text(page(outcomes), encoding="utf-8")
        return
    warnings.simplefilter("ignore")
    formats = (*FORMATS, "onnx") if asked.onnx else FORMATS
    for kind in asked.kinds:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            try:
                outcome = try_kind(kind, Path(directory), formats)
            except Exception:
                outcome = Outcome(kind=kind, failure=traceback.format_exc())
        print(f"{kind}: {time.monotonic() - start:.1f} s", flush=True)
        with asked.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main()
