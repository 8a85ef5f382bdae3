"""A whole model for ONNX Runtime: written by torch's exporter, and run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.errors import ModelError
from bayeslora_cli.export.independent_reader import Logits

ONNX_FILE = "model.onnx"


class _Logits(nn.Module):
    """The logits alone, by the names that tokenizers give to inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, **types
        ).logits
        return logits


def write_onnx(model: Any, example: dict[str, Tensor], directory: Path) -> int:
    """Write a whole model for ONNX Runtime, batch and sequence of any size; returns the opset.

    Args:
        model: on the CPU, as `load_merged` gives it.
        example: inputs to trace, of more than one row and token.
    Raises:
        ModelError: the exporter cannot trace this backbone.
    """
    axes = {0: "batch", 1: "sequence"}
    noise = logging.getLogger("torch.onnx")
    level = noise.level
    noise.setLevel(logging.ERROR)  # it warns of each optional package that is not there
    try:
        with _named(f"torch cannot export {type(model).__name__}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch, nothing of the model
            program = torch.onnx.export(
                _Logits(model).eval(),
                kwargs=example,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(example, axes),
                dynamo=True,
                verbose=False,
            )
            assert program is not None
            program.save(str(directory / ONNX_FILE))
    finally:
        noise.setLevel(level)
    return int(program.model.opset_imports[""])


def open_onnx(directory: Path) -> Logits:
    """The model in ONNX Runtime, on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot run it, here or when it is called.
    """
    import onnxruntime

    with _named("ONNX Runtime cannot run the model"):
        session = onnxruntime.InferenceSession(
            str(directory / ONNX_FILE), providers=["CPUExecutionProvider"]
        )

    def logits(batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: value.numpy() for name, value in batch.items()}
        with _named("ONNX Runtime cannot run the model"):
            return torch.from_numpy(session.run(["logits"], inputs)[0])

    return logits


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Any failure as one message.

    The tracer, the converter and the runtime have classes of their own, by version; what is guarded
    contains no code of ours.
    """
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"--format onnx: {what} ({first}); --format merged works without ONNX"
        ) from error
