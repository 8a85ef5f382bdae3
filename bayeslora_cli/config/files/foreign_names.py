"""Maps option names of other trainers (HF Trainer, PEFT, TRL, axolotl, litgpt) to ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ours:
    """The option here with the meaning of a name from another trainer."""

    name: str
    """Its field of `RunConfig`, or an option of `bayeslora train` outside `RunConfig`."""
    value: str = ""
    """The value to give it; empty: the user's own."""
    note: str = ""
    """A clause that tells how the option differs."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A name from another trainer that has no option here."""

    advice: str
    """A clause that tells what to do instead."""


_RANK = Ours("target_rank", note="the mean rank at the end, or the rank of --method lora")
_BATCH = Ours("batch_size", note="it counts the examples of all processes and micro-batches")
_ACCUMULATE = Ours("grad_accum", note="it splits --batch-size, which does not change")
_LEAVE = Missing("leave it out")
_FP16 = Ours("precision", "bf16", "fp16 would need loss scaling")
_HUB = Missing("export a finished run: bayeslora export RUN --format FORMAT --push-to-hub REPO")
_NO_FORM = Missing("there is no such form of adapters here; choose a --method")
_FROZEN = Missing(
    "the frozen weights stay whole; --method blora --quantize-base learns their widths"
)
_ADAM = Missing("leave it out: AdamW has PyTorch's betas and epsilon")
_BEST = Missing("leave it out: the best evaluation at the final ranks is what a run keeps")
_SELECT = Ours("select", note="each metric knows whether larger is better")

FOREIGN: dict[str, Ours | Missing] = {
    # what is trained
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "model_id", "base_model", "pretrained_model_name"),
        Ours("model"),
    ),
    "checkpoint_dir": Ours("model", note="a directory as transformers saves it"),
    "task_name": Ours("task"),
    "dataset": Ours("train_file", note="a file, or a hub data set NAME:CONFIG@SPLIT"),
    "dataset_name": Ours("train_file", note="a file, or a hub data set NAME:CONFIG@SPLIT"),
    "dataset_config_name": Ours("train_file", note="a hub data set NAME:CONFIG@SPLIT"),
    "train_data": Ours("train_file"),
    "data_dir": Ours("data"),
    **dict.fromkeys(("validation_file", "dev_file", "eval_data"), Ours("eval_file")),
    **dict.fromkeys(("text_column", "text_column_name", "text_column_names"), Ours("text_columns")),
    **dict.fromkeys(("label_column_name", "label_name"), Ours("label_column")),
    **dict.fromkeys(("config", "config_file", "recipe"), Ours("preset", note="a .toml file")),
    # adapters
    **dict.fromkeys(("lora_r", "lora_rank", "r", "rank", "target_r"), _RANK),
    "init_r": Ours("init_rank"),
    "lora_alpha": Ours("alpha"),
    **dict.fromkeys(("lora_target_modules", "lora_modules"), Ours("target_modules")),
    "lora_target_linear": Ours("target_modules", "all-linear"),
    "lora_dropout": Ours("dropout", note="it sets the backbone's dropout; adapters have none"),
    "tinit": Ours("t_init"),
    "tfinal": Ours("t_final"),
    "deltat": Ours("delta_t"),
    "orth_reg_weight": Ours("orth_reg"),
    **dict.fromkeys(("adapter", "peft_type", "finetuning_type", "peft_method"), Ours("method")),
    "use_peft": Missing("leave it out; --method full trains without adapters"),
    **dict.fromkeys(("lora_bias", "use_rslora", "use_dora", "init_lora_weights"), _NO_FORM),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantize"), _FROZEN),
    # how long, and how fast
    **dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "max_epochs"), Ours("epochs")),
    **dict.fromkeys(("max_train_steps", "num_train_steps", "total_steps"), Ours("max_steps")),
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_gpu_train_batch_size", "train_batch_size",
         "global_batch_size", "micro_batch_size"),
        _BATCH,
    ),
    **dict.fromkeys(
        ("per_device_eval_batch_size", "per_gpu_eval_batch_size"), Ours("eval_batch_size")
    ),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), _ACCUMULATE),
    **dict.fromkeys(
        ("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "model_max_length"),
        Ours("max_length"),
    ),
    **dict.fromkeys(("learning_rate", "base_lr"), Ours("lr")),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), Ours("lr_schedule")),
    **dict.fromkeys(("num_warmup_steps", "lr_warmup_steps"), Ours("warmup_steps")),
    "wd": Ours("weight_decay"),
    **dict.fromkeys(("optim", "optimizer_type"), Ours("optimizer")),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon"), _ADAM),
    **dict.fromkeys(
        ("gradient_clipping", "gradient_clip_val", "clip_grad_norm"),
        Ours("max_grad_norm", note="of adamw; ivon has --clip-radius"),
    ),
    "label_smoothing_factor": Missing("leave it out: labels are not smoothed"),
    # on what, and where to
    "bf16": Ours("precision", "bf16", "adapters stay fp32"),
    "fp16": _FP16,
    "tf32": Ours("precision", "tf32"),
    "mixed_precision": Ours("precision"),
    **dict.fromkeys(("no_cuda", "use_cpu"), Ours("device", "cpu")),
    "torch_compile": Ours("compile", "on"),
    "random_seed": Ours("seed"),
    **dict.fromkeys(("output_dir", "out_dir", "output_path", "save_dir"), Ours("output")),
    "overwrite_output_dir": Ours("overwrite"),
    "gradient_checkpoint": Ours("gradient_checkpointing"),
    **dict.fromkeys(("eval_steps", "eval_interval"), Ours("eval_every")),
    **dict.fromkeys(
        ("eval_strategy", "evaluation_strategy"),
        Missing("leave it out: every epoch is evaluated, and --eval-every STEPS adds evaluations"),
    ),
    **dict.fromkeys(("save_steps", "save_interval"), Ours("checkpoint_every")),
    "save_strategy": Missing("leave it out, or give --checkpoint-every steps or a time"),
    "save_total_limit": Missing("leave it out: a run keeps only what it needs to be resumed"),
    **dict.fromkeys(("logging_steps", "log_interval"), Ours("log_every")),
    "logging_strategy": Missing("leave it out, or give --log-every STEPS"),
    **dict.fromkeys(("report_to", "with_tracking", "logger_name"), Ours("log_to")),
    "wandb_project": Ours("log_to", "wandb", "WANDB_PROJECT names the project"),
    "logging_dir": Missing("leave it out: logs are in the run's directory"),
    "run_name": Missing("leave it out: the settings name the run's directory"),
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume", "auto_resume"),
        Missing("leave it out: the same command, run again, resumes"),
    ),
    **dict.fromkeys(("do_train", "do_eval"), Missing("leave it out: train does both")),
    "do_predict": Missing("train, then: bayeslora eval RUN --split test --predictions FILE.csv"),
    **dict.fromkeys(("load_best_model_at_end", "greater_is_better"), _BEST),
    **dict.fromkeys(("metric_for_best_model", "best_metric", "monitor"), _SELECT),
    **dict.fromkeys(("early_stopping_patience", "early_stopping"), Ours("patience")),
    "class_weight": Ours("class_weights"),
    **dict.fromkeys(("push_to_hub", "hub_model_id"), _HUB),
    **dict.fromkeys(("dataloader_num_workers", "remove_unused_columns", "dataset_text_field"),
                    _LEAVE),
    **dict.fromkeys(
        ("local_rank", "num_processes"),
        Missing("leave it out: torchrun or srun says how many processes there are"),
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "devices", "num_nodes"),
        Missing("leave it out: start several processes with torchrun or srun"),
    ),
}  # fmt: skip


def hint(name: str, spelled: Callable[[str, str], str], known: Callable[[str], bool]) -> str | None:
    """Tell in a clause what to write here for another trainer's name; None: the name is unknown.

    Args:
        name: the name, with underscores or hyphens.
        spelled: writes an option and its value, which may be empty, as the command line or the
            file with the name would.
        known: tells whether an option can be given there.
    """
    plain = name.strip("-").replace("-", "_").lower()
    found = Ours(plain) if known(plain) else FOREIGN.get(plain)
    if isinstance(found, Missing):
        return found.advice
    if found is None or not known(found.name):
        return None
    note = f" ({found.note})" if found.note else ""
    return f"here it is {spelled(found.name, found.value)}{note}"
