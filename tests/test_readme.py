"""README.md is finished, and what it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PLACEHOLDER = re.compile(r"\b(TODO|TBD|FIXME|XXX|N/A|lorem ipsum|X+\.X+)\b|\?\?+", re.IGNORECASE)
DOTS = re.compile(r"(…|\.\.\.+|\?)")


def placeholders(text):
    """Words that stand for what is still to be written, and table cells of nothing but dots."""
    for number, line in enumerate(text.splitlines(), start=1):
        if PLACEHOLDER.search(line):
            yield number
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if any(DOTS.fullmatch(cell) for cell in cells):
                yield number


def missing(text, root):
    """Targets of links and images that are neither addresses nor files below `root`."""
    code = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    text = code.sub("", text)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    targets += re.findall(r"^\[[^\]]+\]:\s*<?([^\s>]+)", text, re.MULTILINE)
    targets += re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    for target in targets:
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z][a-z0-9+.-]*:", path) and not (root / path).exists():
            yield target


def test_nothing_is_left_to_be_written():
    assert list(placeholders(README.read_text(encoding="utf-8"))) == []


def test_what_it_points_to_is_there():
    text = README.read_text(encoding="utf-8")
    assert "](" in text
    assert list(missing(text, ROOT)) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("TODO: measure", True), ("accuracy X.X", True), ("| MRPC | tbd |", True),
        ("| a | … | 3 |", True), ("| a | ... |", True), ("| ? | a |", True), ("why??", True),
        ("| a | | 3 |", False), ("| a | – |", False), ("`glue/RTE/train.tsv`, …", False),
        ("| `runs/…` | 0.3 |", False), ("max.x", False),
    ],
)  # fmt: skip
def test_placeholders_are_seen(line, found):
    assert list(placeholders(f"x\n{line}")) == [2] * found


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "there.png").touch()
    text = (
        "[a](there.png) ![b](gone.png 'title') [c](https://x.y/z) [d](#part) [e](there.png#f)\n"
        '[g]: away.md\n<img src="lost.svg">\n```\n[h](code.md)\n```\n`[i](inline.md)`\n'
    )
    assert list(missing(text, tmp_path)) == ["gone.png", "away.md", "lost.svg"]
