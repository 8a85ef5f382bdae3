"""Kinds of tasks that tests want often."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.tasks.objectives.objective import build_objective

TWO_CLASSES = build_objective("classification", ("a", "b"))
SCORE = build_objective("regression", ())
NEXT_TOKENS: Any = SimpleNamespace(
    entry=replace(OBJECTIVES["regression"], auto_class="AutoModelForCausalLM", head=False),
    model_options=dict,
)
