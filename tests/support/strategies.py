"""What tests of configurations draw from."""

from __future__ import annotations

from hypothesis import strategies as st

from bayeslora_cli.config.catalogue import BASE_PRECISIONS, TASK_NAMES
from bayeslora_cli.config.run_config import OPTIONS, RunConfig

# the product's table, written out once more: method, optimizer -> criteria, the default first
TABLE = {
    ("adalora", "ivon"): ["snr", "sensitivity", "snr-abs", "magnitude", "precision"],
    ("adalora", "adamw"): ["sensitivity", "magnitude"],
    ("lora", "adamw"): [None],
    ("lora", "ivon"): [None],
    ("full", "adamw"): [None],
    ("full", "ivon"): [None],
    ("blora", "adamw"): [None],
    ("blora", "ivon"): [None],
}
ROWS = [(m, o, c) for (m, o), criteria in TABLE.items() for c in criteria]
NOT_RESULT = {
    "eval_batch_size", "log_every", "device", "gradient_checkpointing", "output", "overwrite",
    "trust_remote_code", "deterministic", "checkpoint_every", "eager", "compile", "packing",
    "log_to", "shard",
}  # fmt: skip
FLOATS = [name for name, f in OPTIONS.items() if "float" in str(f.type)]

positive = st.floats(1e-9, 1e9)
not_negative = st.just(0.0) | positive
fraction = st.floats(0, 1, exclude_max=True)
count = st.integers(1, 10**6)
step = st.integers(0, 10**6)
text = st.text(max_size=12)  # any character that UTF-8 has
path = text.filter(lambda found: "\0" not in found)  # no file has it in its name
FREE = {
    "data": st.none() | path,
    "text_columns": st.none() | st.lists(text, max_size=3).map(tuple),
    "label_column": st.none() | text,
    "task_type": st.none() | st.sampled_from(["classification", "regression"]),
    "dropout": st.none() | fraction,
    "ess_per_example": positive,
    "trust_remote_code": st.booleans(),
    "model": path,
    "target_modules": st.none() | st.lists(text, max_size=3).map(tuple),
    "start_from": st.none() | path,
    "from_ranks": st.sampled_from(["anew", "kept"]),
    "prior": st.sampled_from(["zero", "from"]),
    "alpha": positive,
    "orth_reg": not_negative,
    "t_init": step,
    "t_final": count,
    "delta_t": count,
    "blora_mode": st.sampled_from(["both", "quant", "rank"]),
    "lambda_quant": not_negative,
    "lambda_rank": not_negative,
    "bit_ladder": st.sampled_from(["2,4,8,16", "2,4", "8", "4,8,16"]),
    "quantize_base": st.booleans(),
    "reg": st.sampled_from(["const", "bop"]),
    "gate_lr": positive,
    "range_lr": positive,
    "epochs": positive,
    "max_steps": st.none() | count,
    "max_length": count,
    "lr": positive,
    "boost_until_step": step,
    "warmup_steps": step,
    "warmup_ratio": st.none() | fraction,
    "weight_decay": not_negative,
    "weight_decay_of": st.sampled_from(["all", "matrices"]),
    "max_grad_norm": st.none() | positive,
    "ess": st.none() | positive,
    "hess_init": positive,
    "ivon_beta1": fraction,
    "ivon_beta2": fraction,
    "clip_radius": positive | st.just(float("inf")),  # inf: no clipping, ivon's own default
    "seed": step,
    "precision": st.sampled_from(["fp32", "tf32", "bf16"]),
    "schedule_steps": st.none() | count,
    "eval_every": st.none() | count,
    "eval_batch_size": count,
    "log_every": count,
    "device": text,
    "gradient_checkpointing": st.sampled_from(["off", "blocks", "selective"]),
    "output": path,
    "overwrite": st.booleans(),
    "deterministic": st.booleans(),
    "eager": st.booleans(),
    "group_by_length": st.booleans(),
    "compile": st.sampled_from(["auto", "on", "off"]),
    "packing": st.sampled_from(["auto", "on", "off"]),
    "shard": st.just(False),  # not beside every other value
    "log_to": st.none()
    | st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2).map(tuple),
    "choices": st.none() | st.sampled_from(["answers", "letters"]),
    "loss_on": st.sampled_from(["completions", "all"]),
    "validation": st.floats(0.01, 0.99),
    "class_weights": st.none() | st.sampled_from(["balanced", "a=2,b=0.5"]),
    "temperature": st.floats(1e-3, 10),
    "pooling": st.sampled_from(["mean", "cls"]),
    "select": st.none() | st.sampled_from(["accuracy", "macro_f1", "nll"]),
    "patience": st.none() | count,
    "checkpoint_every": st.sampled_from(["auto", "1", "500", "30s", "10m", "2h"]),
}


@st.composite
def configs(draw):
    """Any valid configuration, every field drawn."""
    method, optimizer, criterion = draw(st.sampled_from(ROWS))
    target_rank, grad_accum = draw(st.integers(1, 64)), draw(st.integers(1, 8))
    schedule = draw(st.sampled_from(["linear", "cosine", "constant", "boost"]))
    task = draw(st.sampled_from(TASK_NAMES))
    linked = {
        "task": task,
        "train_file": draw(text) if task == "custom" else None,
        "eval_file": draw(st.none() | text) if task == "custom" else None,
        "method": method,
        "optimizer": optimizer,
        "criterion": criterion,
        "target_rank": target_rank,
        "init_rank": target_rank + (0 if method == "lora" else draw(st.integers(0, 64))),
        "grad_accum": grad_accum,
        "batch_size": grad_accum * draw(st.integers(1, 64)),
        "train_samples": draw(st.integers(1, 4)) if optimizer == "ivon" else 1,
        "lr_schedule": schedule,
        "boost_lr": draw(positive if schedule == "boost" else st.none() | positive),
    }
    free = draw(st.fixed_dictionaries(FREE))
    allowed = ["bf16"] if free["quantize_base"] else list(BASE_PRECISIONS)
    linked["base_precision"] = draw(st.sampled_from([None, *([] if method == "full" else allowed)]))
    assert linked.keys() | free.keys() == OPTIONS.keys()
    return RunConfig(**linked, **free)


# what somebody may type besides the row, each valid whatever the rest is
TYPED = st.fixed_dictionaries(
    {},
    optional={
        name: FREE[name]
        for name in ("alpha", "orth_reg", "epochs", "max_steps", "max_length", "lr", "ess", "seed")
    }
    | {
        "t_init": step,
        "delta_t": count,
        "warmup_steps": step,
        "eval_every": count,
        "batch_size": count,
        "log_every": count,
        "device": st.sampled_from(["cpu", "cuda", "auto"]),
    },
)
