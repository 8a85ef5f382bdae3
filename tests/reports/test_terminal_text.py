"""Names as a terminal can show them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.reports.terminal_text import printable


@given(st.text(max_size=20))
def test_printable_is_printable(name):
    assert printable(name).isprintable()
    assert printable(name, unicode=False).isascii()
    assert printable(name, unicode=False).isprintable()
    if name.isprintable():
        assert printable(name) == name


def test_a_file_name_that_is_no_text():
    assert printable("a\udcff") == r"a\udcff"
