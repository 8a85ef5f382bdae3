"""Evaluations of finished runs, as `bayeslora eval --json` prints them."""

from __future__ import annotations

from bayeslora_cli.evaluation.run_evaluation import evaluate_run


def evaluated(*arguments, **options):
    """The JSON object of `evaluate_run`."""
    return evaluate_run(*arguments, **options).to_json()
