"""The whole model for ONNX Runtime, written by torch's exporter."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.errors import ModelError
from bayeslora_cli.export.formats.format import Format, Snippet
from bayeslora_cli.export.formats.merged_model import MERGED
from bayeslora_cli.export.independent_reader import Logits, load_merged
from bayeslora_cli.export.request import ExportOptions
from bayeslora_cli.export.verification import batches_of, random_rows
from bayeslora_cli.methods.network import Network
from bayeslora_cli.tasks.task import Task

ONNX_FILE = "model.onnx"


class OnnxModel(Format):
    """The whole model for ONNX Runtime; batch and sequence may have any size."""

    def write(
        self,
        directory: Path,
        network: Network,
        config: RunConfig,
        tokenizer: Any,
        options: ExportOptions,
    ) -> dict[str, Any]:
        """Write the graph and transformers' config.json; return the opset.

        Raises:
            ModelError: the exporter cannot trace this backbone.
        """
        whole = directory / "merged"
        MERGED.write(whole, network, config, tokenizer, options)
        model = load_merged(
            whole,
            network.objective.entry.auto_class,
            trust_remote_code=config.trust_remote_code,
        )
        parts = network.objective.sequences
        example = batches_of(random_rows(tokenizer, 6, config.max_length, parts=parts))[0]
        opset = write_onnx(model, example, directory)
        model.config.save_pretrained(directory)
        shutil.rmtree(whole)
        return {"opset": opset}

    def reopen(
        self, directory: Path, config: RunConfig, task: Task, device: torch.device
    ) -> Logits:
        """Open the model with ONNX Runtime, on the CPU."""
        return open_onnx(directory)

    def description(self, options: ExportOptions) -> str:
        return "This is the whole model for ONNX Runtime; batch and sequence may have any size."

    def snippet(self, config: RunConfig, task: Task) -> Snippet:
        """Return the code that opens the model with ONNX Runtime."""
        return Snippet(
            packages=("import onnxruntime",),
            load=(f'session = onnxruntime.InferenceSession(f"{{directory}}/{ONNX_FILE}")',),
            predict=(
                "names = {i.name for i in session.get_inputs()}",
                "feed = {name: value for name, value in inputs.items() if name in names}",
                'logits = session.run(["logits"], feed)[0]',
            ),
            predict_packages=(),
            generate=(),
            tensors="np",
            opens_hub_names=False,
        )


ONNX = OnnxModel()


class _Logits(nn.Module):
    """A model that returns only the logits, or the states if it has no head; its inputs have the
    tokenizer's names."""

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
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        logits: Tensor = output.logits if "logits" in output else output.last_hidden_state
        return logits


def write_onnx(model: Any, example: dict[str, Tensor], directory: Path) -> int:
    """Write a whole model for ONNX Runtime, for any batch and sequence size; return the opset.

    Args:
        model: a model on the CPU that `load_merged` returned.
        example: inputs to trace, with more than one row and token.
    Raises:
        ModelError: the exporter cannot trace this backbone.
    """
    few = {0: "batch", 1: "sequence"}
    axes = few if example["input_ids"].ndim == 2 else {0: "batch", 1: "choices", 2: "sequence"}
    noise = logging.getLogger("torch.onnx")
    level = noise.level
    noise.setLevel(logging.ERROR)  # it warns of every optional package that is not installed
    try:
        with _named(f"torch cannot export {type(model).__name__}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch, not about the model
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
    """Open the model in ONNX Runtime, on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot run the model, here or when it is called.
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
    """Turn any failure inside this block into a ModelError.

    The tracer, the converter and the runtime each have their own error classes, which differ
    between versions; no code of this package runs inside.
    """
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"--format onnx: {what} ({first}); --format merged works without ONNX"
        ) from error
