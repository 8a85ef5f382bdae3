"""README.md of an export: how to load this format, in code that runs as it stands."""

from __future__ import annotations

from collections.abc import Mapping

from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.export.formats.onnx_model import ONNX_FILE
from bayeslora_cli.export.formats.peft_adapter import BACKBONE
from bayeslora_cli.export.quantization_loss import Lost
from bayeslora_cli.runs import model_card
from bayeslora_cli.tasks.task import Task

LIBRARIES = {
    "adalora": "peft",
    "lora": "peft",
    "merged": "transformers",
    "onnx": "onnx",
    "quantized": "bayeslora",
}
_WHAT = {
    "adalora": "This is the pruned AdaLoRA adapter, for PEFT.",
    "lora": "This is a plain LoRA adapter with a rank and an alpha of its own for each matrix "
    "(`rank_pattern`,\n`alpha_pattern`), for PEFT.",
    "lora-uniform": "This is a plain LoRA adapter padded with zeros to one rank and one alpha.",
    "merged": "This is the whole model, the adapter merged in.",
    "onnx": "This is the whole model for ONNX Runtime; batch and sequence may have any size.",
    "quantized": "These are the adapter's integer codes with their scales and the ranges of its "
    "activations,\nfor bayeslora; `quantization.json` has each matrix's rank and bit widths.",
}


def export_card(
    name: str,
    config: RunConfig,
    task: Task,
    steps: int,
    metrics: Mapping[str, Mapping[str, float]],
    precision: str,
    check: str,
    target_rank: int | None = None,
    lost: Lost | None = None,
) -> str:
    """The text.

    Args:
        name: the format; lora-uniform for the padded one.
        metrics: of what is exported.
        precision: in which they were measured.
        check: what was measured, in words.
        target_rank: to which the run was pruned further; None: it was not.
        lost: what of the run's quantization this format has no place for.
    """
    pruned = "" if target_rank is None else f" Pruned to rank {target_rank} after training."
    form = name.partition("-")[0]
    reopened = "Read back" if form == "quantized" else "Reopened without bayeslora"
    return "\n".join(
        [
            model_card.front_matter(config, LIBRARIES[form]),
            model_card.heading(config, task),
            model_card.introduction(config, task, steps) + pruned + "\n",
            f"{_WHAT[name]}\n{reopened}, {check}.\n",
            *([] if lost is None else [f"{str(lost)[0].upper()}{str(lost)[1:]}.\n"]),
            f"Metrics, measured in {precision}:\n",
            model_card.metric_table(metrics),
            model_card.code(snippet(form, config, task)),
        ]
    )


def snippet(form: str, config: RunConfig, task: Task) -> str:
    """Python that loads the export from its directory and predicts."""
    trust = ", trust_remote_code=True" if config.trust_remote_code else ""
    sentences = ", ".join('["…"]' for _ in task.text_columns)
    tensors = "np" if form == "onnx" else "pt"
    hub = "" if form == "onnx" else ", or the name of its repository on the hub"
    prepare = [
        f'directory = "."  # of this file{hub}',
        f"tokenizer = AutoTokenizer.from_pretrained(directory{trust})",
        "inputs = tokenizer(",
        f"    {sentences}, truncation=True, max_length={config.max_length}, padding=True,",
        f'    return_tensors="{tensors}",',
        ")",
    ]
    if form == "onnx":
        imports = ["import onnxruntime", "from transformers import AutoTokenizer"]
        load = [
            f'session = onnxruntime.InferenceSession(f"{{directory}}/{ONNX_FILE}")',
            "names = {i.name for i in session.get_inputs()}",
            'logits = session.run(["logits"], {k: v for k, v in inputs.items() if k in names})[0]',
        ]
    elif form == "quantized":
        imports = [
            "from pathlib import Path",
            "",
            "import torch",
            "from transformers import AutoTokenizer",
            "",
            "from bayeslora_cli.export.formats.integer_codes import load_quantized",
        ]
        load = [
            f'network = load_quantized(Path(directory), torch.device("cpu"){trust})',
            "network.module.eval()",
            "with torch.no_grad():",
            "    logits = network.logits(inputs)",
        ]
    else:
        imports = ["import torch"]
        load = [f"model = AutoModelForSequenceClassification.from_pretrained(directory{trust})"]
        classes = "AutoModelForSequenceClassification, AutoTokenizer"
        if form != "merged":
            base_imports, base = model_card.base_model(config.model)
            imports = [*base_imports, "", *imports] if base_imports else imports
            imports.append("from peft import PeftModel")
            classes = "AutoConfig, " + classes
            load = [
                f'config = AutoConfig.from_pretrained(directory, subfolder="{BACKBONE}"{trust})',
                "base = AutoModelForSequenceClassification.from_pretrained(",
                f"    {base}, config=config{trust},",
                "    ignore_mismatched_sizes=True,  # the adapter brings the head",
                ")",
                "model = PeftModel.from_pretrained(base, directory)",
            ]
        imports.append(f"from transformers import {classes}")
        load += ["model.eval()", "with torch.no_grad():", "    logits = model(**inputs).logits"]
    return "\n".join([*imports, "", *prepare, *load, "print(logits)"])
