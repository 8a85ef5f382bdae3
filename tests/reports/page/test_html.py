"""Text from elsewhere stays text in elements, attributes and JSON."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslora_cli.reports.page.html import (
    clean,
    details,
    element,
    join,
    number,
    plot_text,
    script_json,
    shortened,
    table,
)
from tests.support.pages import HOSTILE, Page


@settings(max_examples=50)
@given(HOSTILE, HOSTILE, HOSTILE)
def test_text_is_text(text, caption, value):
    found = Page(
        join(
            [
                element("p", text, title=value, data_name=caption),
                table(caption, [text, value], [[value, text], [text, number(1.0)]]),
                details(text, value),
            ]
        )
    )
    assert not found.open
    assert set(found.tags) == {
        "p", "div", "table", "caption", "span", "thead", "tbody", "tr", "th", "td", "details",
        "summary",
    }  # fmt: skip
    assert found.tags.count("tr") == 3
    assert found.attributes == {
        "title", "data-name", "class", "tabindex", "role", "aria-label", "scope", "data-value",
    }  # fmt: skip
    assert "".join(found.texts).count(clean(text)) >= 4 if clean(text) else True


@given(st.dictionaries(HOSTILE, st.one_of(HOSTILE, st.floats(), st.lists(HOSTILE, max_size=3))))
def test_json_in_a_page_is_data(value):
    found = Page(script_json(value, "figures"))
    assert found.tags == ["script"]
    written = found.scripts["figures"]
    assert "<" not in written
    written.encode()
    read = json.loads(written)
    assert set(read) == {clean(key) for key in value}
    for key, item in value.items():
        if isinstance(item, str) and [clean(k) for k in value].count(clean(key)) == 1:
            assert read[clean(key)] == item


@given(HOSTILE)
def test_text_in_figures_is_text(text):
    written = plot_text(text)
    assert "<" not in written
    assert "".join(Page(written).texts) == clean(text)
    written.encode()


@pytest.mark.parametrize("value", [None, math.nan, math.inf, True, "0.5", []])
def test_what_is_no_number_is_an_empty_cell(value):
    assert number(value).text == ""
    assert "data-value" not in table("", ["", ""], [["a", number(value)]])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_kept_in_full(value):
    found = Page(table("", ["", ""], [["a", number(value, ".2f")]]))
    assert [float(cell) for cell in found.cells] == [value]


@given(st.text(), st.integers(1, 30))
def test_long_texts_are_cut(text, length):
    found = shortened(text, length)
    assert len(found) <= max(length, 1)
    assert found == text or (found.endswith("…") and text.startswith(found[:-1]))
