"""Names as a terminal can show them."""

from __future__ import annotations

import shlex
import subprocess

from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.reports.terminal_text import harmless, printable, shell_line


@given(st.text(max_size=20))
def test_printable_is_printable(name):
    assert printable(name).isprintable()
    assert printable(name, unicode=False).isascii()
    assert printable(name, unicode=False).isprintable()
    if name.isprintable():
        assert printable(name) == name


def test_a_file_name_that_is_no_text():
    assert printable("a\udcff") == r"a\udcff"


@given(st.text(max_size=20))
def test_harmless_text_has_nothing_to_obey(text):
    shown = harmless(text)
    assert all(c in "\t\n" or not (ord(c) < 32 or 127 <= ord(c) < 160) for c in shown)
    assert not set(shown) & set("\u202a\u202e\u2066\u2069")
    if text.isprintable():
        assert shown == text


def test_a_command_is_one_line_whatever_its_words_are():
    words = ["bayeslora", "a b", "it's", "a\nb", "\x1b[31m", "é\t'\\", ""]
    line = shell_line(words)
    assert line.isprintable()
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True
    ).stdout
    assert said.decode().split("\0")[:-1] == words
    assert shell_line(words[:3]) == shlex.join(words[:3])


def test_half_of_a_surrogate_pair_is_written_out():
    assert shell_line(["a\ud800"]) == r"$'a\xed\xa0\x80'"
