"""Kinds of tasks that tests want often."""

from __future__ import annotations

from bayeslora_cli.tasks.objectives.objective import build_objective

TWO_CLASSES = build_objective("classification", ("a", "b"))
SCORE = build_objective("regression", ())
NEXT_TOKENS = build_objective("causal", ())
