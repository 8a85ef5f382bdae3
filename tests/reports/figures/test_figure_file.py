"""Files of figures that cannot be written are refused before anything is computed."""

from __future__ import annotations

import importlib.util
import re

import pytest

from bayeslora_cli.errors import UserError
from bayeslora_cli.reports.figures.figure_file import check_figure


@pytest.mark.parametrize("name", ["figure", "figure.jpg", "figure.png.txt", ".png"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"--output .*use one of \.png, \.svg, \.pdf"):
        check_figure(tmp_path / name, "--output")


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match="is a directory"):
        check_figure(tmp_path / "a.png", "--output")


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    with pytest.raises(UserError, match=re.escape("pip install 'bayeslora[plot]'")):
        check_figure(tmp_path / "a.png", "--output")
