"""The study's protocol, as `protocol.toml` states it, and the data in the parts that it wants."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.tasks.sources.glue import TASKS, GlueTask, read_tsv
from bayeslora_cli.tasks.validation_share import digests_of, draw

PROTOCOL: dict[str, Any] = tomllib.loads(
    (Path(__file__).parent / "protocol.toml").read_text(encoding="utf-8")
)

BASELINE = "lora"
"""The row that other ways to better probabilities start from (`baselines.py`)."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A setting of a family, and its place among the family's trials."""

    family: str
    number: int
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.number:02d}"


def trials() -> Iterator[Trial]:
    """Return all trials, the first of each family first, so that a call that is cut off has tried
    as many of each, or one less; LoRA's, which no question of the study rests on, come last."""
    found = PROTOCOL["trials"]
    for families in ([name for name in found if name != "lora"], ["lora"]):
        for number in range(max(len(found[name]) for name in families)):
            for name in families:
                if number < len(found[name]):
                    yield Trial(family=name, number=number, options=found[name][number])


def options_of(family: str, setting: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return a setting's options of `bl.train` on a task, learning rates worked out."""
    options = {**PROTOCOL["common"], **PROTOCOL["families"][family], **setting, "task": task}
    times = options.pop("lr_times", None)
    if times is not None:
        preset = resolve(options, None).config
        options["lr"] = preset.lr * times
        if preset.lr_schedule == "boost" and preset.boost_lr is not None:
            options["boost_lr"] = preset.boost_lr * times
    return options


def epochs_of(task: str) -> float:
    """Return the epochs of a task's runs."""
    found: dict[str, float] = PROTOCOL["search"]["epochs"] | PROTOCOL.get("judge", {}).get(
        "epochs", {}
    )
    return found[task]


def write_parts(data: Path, tasks: list[str], out: Path, share: float) -> None:
    """Write GLUE's folders anew, with a part of the training rows in the place of the dev rows.

    The part is drawn as `--validation` draws it. MNLI's two dev files get a half of it each.
    """
    for task in (TASKS[name] for name in tasks):
        lines = _lines(data / task.folder / "train.tsv")
        header = [] if task.implied_header else [lines.pop(0)]
        rows = read_tsv(data / task.folder / "train.tsv", task, labelled=True)
        held_out = frozenset(draw(rows, share, by_label=bool(task.classes)))
        digests = digests_of(rows)
        outside = [line for line, d in zip(lines, digests, strict=True) if d in held_out]
        kept = [line for line, d in zip(lines, digests, strict=True) if d not in held_out]
        (out / task.folder).mkdir(parents=True, exist_ok=True)
        for name, part in (("train", kept), *_evaluated(task, outside)):
            text = "\n".join((*header, *part)) + "\n"
            (out / task.folder / f"{name}.tsv").write_text(text, encoding="utf-8")


def _evaluated(task: GlueTask, lines: list[str]) -> list[tuple[str, list[str]]]:
    """Divide the lines among the task's dev files."""
    names = [split.replace("validation", "dev") for split in task.validation_splits]
    return [(name, lines[i :: len(names)]) for i, name in enumerate(names)]


def _lines(path: Path) -> list[str]:
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    return [line.removesuffix("\r") for line in text.rstrip("\n").split("\n")]
