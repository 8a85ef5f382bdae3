"""How each run was trained, and how to train it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bayeslora_cli.config.catalogue import METHODS, OBJECTIVES
from bayeslora_cli.reports.page.html import Html, details, element, join, shortened, table
from bayeslora_cli.reports.page.records import FINISHED, RunRecord
from bayeslora_cli.reports.page.sections.section import Section
from bayeslora_cli.reports.results.outcomes import nested
from bayeslora_cli.reports.terminal_text import shell_line
from bayeslora_cli.tasks.task import DATA_CHECKSUM, Task

SETTINGS = ("config.toml, the resolved configuration", "option", "value")
VERSIONS = ("Versions", "package", "version")


def repeat(records: Sequence[RunRecord]) -> Section:
    """Write for each run what was trained, its command, settings, versions and checksums."""
    settings, versions = _Shared(map(_settings, records)), _Shared(map(_versions, records))
    alone = len(records) == 1
    parts: list[object] = []
    if not alone:
        parts = [
            element("p", "Each run with its command, settings, versions and checksums."),
            details("Settings that all runs have", settings.table(SETTINGS), id="settings-shared"),
            details("Versions that all runs have", versions.table(VERSIONS), id="versions-shared"),
        ]
    for i, record in enumerate(records):
        own = [
            None if alone else element("p", introduction(record)),
            element("h3" if alone else "h4", "Command"),
            element("pre", element("code", command(record)), tabindex="0", aria_label="Command"),
            _facts(record),
            details("All settings" if alone else "Other settings", settings.table(SETTINGS, i),
                    id=f"settings-{record.anchor}"),
            details("Versions" if alone else "Other versions", versions.table(VERSIONS, i),
                    id=f"versions-{record.anchor}") if alone or versions.own[i] else None,
        ]  # fmt: skip
        if alone:
            parts.append(element("div", *own, id=record.anchor))
        else:
            parts.append(details(element("h3", record.name), *own, id=record.anchor, class_="run"))
    return Section(anchor="repeat", title="How to repeat it", body=join(parts))


class _Shared:
    """Facts of runs: those that all of several runs have, and each run's own."""

    def __init__(self, facts: Iterable[Mapping[str, str]]) -> None:
        found = list(facts)
        first, *others = found
        self.all = {
            name: value
            for name, value in first.items()
            if others and all(facts.get(name) == value for facts in others)
        }
        self.own = [{k: v for k, v in facts.items() if k not in self.all} for facts in found]

    def table(self, heads: tuple[str, str, str], run: int | None = None) -> Html:
        """Write the facts that all runs have, or a run's own."""
        caption, *columns = heads
        return table(caption, columns, (self.all if run is None else self.own[run]).items())


def introduction(record: RunRecord) -> str:
    """Say in a sentence or two what the run is."""
    config, task = record.config, record.task
    method = " + ".join(p for p in (config.method, config.optimizer, config.criterion) if p)
    rank = f", target rank {config.target_rank}" if METHODS[config.method].has_ranks else ""
    steps = f"{record.steps_done:,} steps of {config.batch_size} examples"
    if record.state != FINISHED and record.steps_planned:
        steps = f"{record.steps_done:,} of {record.steps_planned:,} steps so far"
    return (
        f"{config.model}, trained on {record.column}{_learned(task)} by {method}, "
        f"seed {config.seed}{rank}, {steps}."
    )


def _learned(task: Task | None) -> str:
    if task is None:
        return ""
    entry = OBJECTIVES.get(task.objective)
    kinds = ", ".join(task.classes)
    what = f"the classes {shortened(kinds, 200)}" if kinds else entry and entry.predicts
    texts = ", ".join(task.text_columns)
    return f" ({what} from {texts})" if what else ""


def command(record: RunRecord) -> str:
    """Return the command line that trained the run, or if it is not known one with its settings."""
    words = record.environment.get("command")
    if isinstance(words, list) and "train" in words:
        return shell_line(["bayeslora", *map(str, words[words.index("train") :])])
    seed = str(record.config.seed)
    return shell_line(["bayeslora", "train", "--preset", str(record.run.config), "--seed", seed])


def _facts(record: RunRecord) -> Html:
    environment, result = record.environment, record.result or {}
    device = " ".join(str(environment.get(k) or "") for k in ("device", "device_name")).strip()
    memory = result.get("peak_memory_bytes")
    facts: dict[str, Any] = {
        "directory": record.run.path,
        "state": record.state,
        "started": environment.get("start"),
        "ended": environment.get("end"),
        "device": device,
        "processes": environment.get("processes"),
        "peak memory": f"{memory / 1e9:.2f} GB" if isinstance(memory, int) else None,
        "steps per second": result.get("steps_per_second"),
        "training rows": result.get("training_rows"),
        "sha256 of rows and labels": result.get(DATA_CHECKSUM)
        or nested(environment, ("identity", "rows")),
        "sha256 of the pretrained weights": nested(environment, ("identity", "weights"))
        or environment.get("backbone_sha256"),
        "revision of the model": environment.get("model_revision"),
    }
    rows = [[name, element("code", str(v)) if "sha256" in name or name == "directory" else v]
            for name, v in facts.items() if v not in (None, "")]  # fmt: skip
    return table(f"Facts of {Path(record.run.path).name}", ["fact", "value"], rows)


def _settings(record: RunRecord) -> dict[str, str]:
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in asdict(record.config).items()
        if value is not None
    }


def _versions(record: RunRecord) -> dict[str, str]:
    environment = record.environment
    found = environment.get("versions")
    versions = dict(found) if isinstance(found, Mapping) else {}
    known = {**versions, "python": environment.get("python"), "platform":
             environment.get("platform")}  # fmt: skip
    return {name: str(value) for name, value in known.items() if value}
