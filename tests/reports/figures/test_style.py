"""What the figures share."""

from __future__ import annotations

import pytest

from bayeslora_cli.reports.figures.style import formula


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("W_q", "$W_{q}$"),
        ("W_f1", "$W_{f1}$"),
        ("W_pool", r"$W_{\mathrm{pool}}$"),
        ("in_proj", "in_proj"),
        ("a$b", r"a\$b"),
    ],
)
def test_names_as_formulas(kind, wanted):
    assert formula(kind) == wanted
