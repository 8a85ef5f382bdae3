"""Shades that tell large from small and negative from positive."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color, ColorSystem

from bayeslora_cli.reports.terminal_shading import DIVERGING, RAMP, SHADES, Shading

values = st.floats(-1, 1).map(lambda v: v * 7)
SPACE = " "
BACKGROUNDS = [background for background, _ in DIVERGING]


def luminance(colour):
    """Of sRGB, as WCAG defines it."""
    parts = [c / 255 for c in Color.parse(colour).get_truecolor()]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def lightness(pair):
    return 116 * luminance(pair[0]) ** (1 / 3) - 16


def test_the_ramp_gets_lighter_evenly():
    """In CIE lightness, of which the eye tells some 2 apart."""
    steps = [lightness(b) - lightness(a) for a, b in itertools.pairwise(RAMP)]
    assert min(steps) > 10
    assert max(steps) < 20


def test_both_signs_get_lighter_alike():
    middle = len(DIVERGING) // 2
    negative, positive = DIVERGING[middle::-1], DIVERGING[middle:]
    for ramp in (negative, positive):
        steps = [lightness(b) - lightness(a) for a, b in itertools.pairwise(ramp)]
        assert min(steps) > 10
    for a, b in zip(negative, positive, strict=True):
        assert abs(lightness(a) - lightness(b)) < 8


@pytest.mark.parametrize("ramp", [RAMP, DIVERGING])
def test_numbers_are_readable_on_every_shade(ramp):
    for pair in ramp:
        dark, light = sorted(luminance(colour) for colour in pair)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


@pytest.mark.parametrize("ramp", [RAMP, DIVERGING])
def test_256_colours_are_enough(ramp):
    for colour in (c for pair in ramp for c in pair):
        fewer = Color.parse(colour).downgrade(ColorSystem.EIGHT_BIT)
        assert fewer.get_truecolor() == Color.parse(colour).get_truecolor()


@given(values, values)
def test_signed_shades_are_in_the_values_order(a, b):
    shading = Shading(top=7, colour=True, characters=False, signed=True)
    levels = [BACKGROUNDS.index(shading.style(v).split(" on ")[1]) for v in sorted((a, b))]
    assert levels == sorted(levels)
    middle = len(DIVERGING) // 2
    for value, level in zip(sorted((a, b)), levels, strict=True):
        assert (level > middle, level < middle) == (value > 0, value < 0)
    assert shading.style(7).endswith(BACKGROUNDS[-1])
    assert shading.style(-7).endswith(BACKGROUNDS[0])


@given(values)
def test_characters_shade_the_size(value):
    shading = Shading(top=7, colour=False, characters=True, signed=True)
    assert shading.mark(value) == shading.mark(-value)
    assert (shading.mark(value) == SHADES[0]) == (value == 0)
    assert shading.style(value) == ""


@pytest.mark.parametrize(
    ("options", "legend"),
    [
        ({"colour": True, "characters": False}, f"0 {14 * SPACE} 7"),
        ({"colour": False, "characters": True}, "0 ░▒▓█ 7"),
        ({"colour": False, "characters": False}, ""),
        ({"colour": True, "characters": False, "signed": True}, f"-7 {14 * SPACE} +7"),
        ({"colour": False, "characters": True, "signed": True}, "0 ░▒▓█ ±7"),
    ],
)
def test_legends(options, legend):
    number = "{:+.0f}" if options.get("signed") else "{:.0f}"
    assert Shading(top=7, **options).legend(number.format).plain == legend
