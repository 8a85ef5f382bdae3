"""Reliability diagrams: the drawing on the terminal, and files that viewers open."""

from __future__ import annotations

import builtins
import importlib.util
import xml.etree.ElementTree as ET

import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.reliability_diagram import save_diagram, text_diagram


def bins(**filled):
    """Fifteen bins, those of p3 and so on with (rows, confidence, accuracy)."""
    names = ("rows", "confidence", "accuracy")
    return [
        dict(zip(names, filled.get(f"p{place}", (0, 0.0, 0.0)), strict=True)) for place in range(15)
    ]


MEAN = bins(p7=(12, 0.5, 0.25), p13=(400, 0.9, 0.82), p14=(31_000, 0.999, 1.0))
SAMPLED = bins(p5=(3, 0.36, 0.0), p13=(500, 0.9, 0.9), p14=(30_000, 0.97, 0.951))


def test_on_the_terminal():
    assert text_diagram({"mean": {"validation": MEAN}, "sampled": {"validation": SAMPLED}}) == (
        "reliability on validation: # accuracy, | mean confidence\n"
        "confidence   rows at the mean                 rows over samples\n"
        "0.33-0.40       -                                3 0.00        |\n"
        "0.47-0.53      12 0.25 #####     |               -\n"
        "0.87-0.93     400 0.82 ################  |     500 0.90 ##################|\n"
        "0.93-1.00   31000 1.00 ###################|  30000 0.95 ###################|"
    )


def test_of_several_splits_at_the_mean():
    lines = text_diagram({"mean": {"matched": MEAN, "mismatched": SAMPLED}}).splitlines()
    assert [line for line in lines if line.startswith("reliability")] == [
        "reliability on matched: # accuracy, | mean confidence",
        "reliability on mismatched: # accuracy, | mean confidence",
    ]
    assert len(lines) == 2 * (2 + 3)
    assert all(line.isascii() and len(line) <= 80 for line in lines)


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
@pytest.mark.parametrize("kinds", [("mean",), ("mean", "sampled")])
def test_files(suffix, start, kinds, tmp_path):
    path = tmp_path / "new" / f"r{suffix}"
    both = {"mean": {"a": MEAN, "b": MEAN}, "sampled": {"a": SAMPLED, "b": SAMPLED}}
    save_diagram(path, {kind: both[kind] for kind in kinds}, "a run")
    assert path.read_bytes().startswith(start)
    assert list(path.parent.iterdir()) == [path]


def test_the_figure_says_what_it_shows(tmp_path, monkeypatch):
    """As text in an SVG: the error in the legend is that of the bins."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")
    save_diagram(tmp_path / "r.svg", {"mean": {"validation": MEAN}}, "rte/seed-1")
    texts = {"".join(e.itertext()).strip() for e in ET.parse(tmp_path / "r.svg").iter()}
    error = (12 * 0.25 + 400 * 0.08 + 31_000 * 0.001) / 31_412
    assert {"rte/seed-1", "validation", "accuracy", "confidence", "share of rows"} <= texts
    assert f"at the mean, ECE {error:.3f}" in texts


@pytest.mark.parametrize("name", ["r.jpeg", "r", "figure.gif"])
def test_other_suffixes(name, tmp_path):
    with pytest.raises(UserError, match=r"--reliability .*use one of \.png, \.svg, \.pdf, or - "):
        save_diagram(tmp_path / name, {"mean": {"validation": MEAN}}, "")
    assert not list(tmp_path.iterdir())


def test_faults_of_the_machine(tmp_path, monkeypatch):
    found = {"mean": {"validation": MEAN}}
    (tmp_path / "d.png").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        save_diagram(tmp_path / "d.png", found, "")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--reliability .*r\.png: cannot be written"):
        save_diagram(tmp_path / "file" / "r.png", found, "")

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "matplotlib" else original(n, *a)
    )
    monkeypatch.setattr(builtins, "__import__", no_matplotlib(builtins.__import__))
    with pytest.raises(UserError, match=r"pip install 'bayeslora\[plot\]'"):
        save_diagram(tmp_path / "r.png", found, "")


def no_matplotlib(original):
    def importer(name, *rest):
        assert not name.startswith("matplotlib")
        return original(name, *rest)

    return importer
