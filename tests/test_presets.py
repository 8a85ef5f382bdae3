"""presets/*.toml: well-formed by themselves, and held against the reference runs' settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bayeslora_cli.config import FIELDS, GLUE_TASKS, check_schedule
from bayeslora_cli.presets import presets_directory, resolve

PAPER = Path(__file__).parents[2] / "shared" / "paper" / "hyperparameters.json"
CRITERIA = {
    ("adalora", "ivon"): ("snr", "sensitivity", "snr-abs", "magnitude", "precision"),
    ("adalora", "adamw"): ("sensitivity", "magnitude"),
    ("lora", "adamw"): (None,),
    ("lora", "ivon"): (None,),
    ("full", "adamw"): (None,),
    ("full", "ivon"): (None,),
}
COMBINATIONS = [(m, o, c) for (m, o), criteria in CRITERIA.items() for c in criteria]
SECTIONS = (
    {m for m, _, _ in COMBINATIONS}
    | {f"{m}-{o}" for m, o, _ in COMBINATIONS}
    | {f"{m}-{o}-{c}" for m, o, c in COMBINATIONS if c}
)
# what the command line alone decides: a preset that set them would surprise
NEVER_IN_PRESETS = {
    "task", "data", "model", "method", "optimizer", "criterion", "target_rank", "init_rank",
    "target_modules", "max_steps", "seed", "precision", "device", "output", "overwrite",
}  # fmt: skip


def read(task):
    return tomllib.loads((presets_directory() / f"{task}.toml").read_text(encoding="utf-8"))


def chosen(task, method, optimizer, criterion):
    typed = {"task": task, "method": method, "optimizer": optimizer}
    return typed | ({} if criterion is None else {"criterion": criterion})


# ---- without the paper's file


def test_one_file_a_task():
    assert {path.stem for path in presets_directory().glob("*")} == set(GLUE_TASKS)


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_sections_and_keys_are_known(task):
    """resolve() reads the sections of one row: a misspelt section would never be noticed."""
    table = read(task)
    sections = {name: value for name, value in table.items() if isinstance(value, dict)}
    assert sections.keys() <= SECTIONS
    assert all(sections.values()), "an empty section says nothing"
    for values in ({k: v for k, v in table.items() if k not in sections}, *sections.values()):
        assert values.keys() <= FIELDS.keys() - NEVER_IN_PRESETS
        assert not any(isinstance(value, dict | list) for value in values.values())


@pytest.mark.parametrize("task", GLUE_TASKS)
@pytest.mark.parametrize(("method", "optimizer", "criterion"), COMBINATIONS)
def test_every_row_resolves(task, method, optimizer, criterion):
    """Into a schedule that fits its own length, with a learning rate that somebody chose."""
    resolved = resolve(chosen(task, method, optimizer, criterion))
    config = resolved.config
    check_schedule(config, config.schedule_steps)
    expected = {"lr", "epochs", "batch_size", "max_length", "schedule_steps"}
    expected |= {"weight_decay"} if optimizer == "ivon" else set()
    expected |= {"alpha"} if method != "full" else set()
    expected |= {"t_init", "t_final", "delta_t", "orth_reg"} if method == "adalora" else set()
    assert {name for name in expected if resolved.sources[name] != "preset"} == set()
    # the values' types are the fields': TOML's 3 and 3.0 differ
    for name, field in FIELDS.items():
        value, kinds = getattr(config, name), str(field.type)
        if name == "target_modules" or value is None:
            continue
        assert type(value).__name__ in kinds, name


# ---- against the paper's file

RENAMED = {
    "eval_every_steps": "eval_every",
    "lora_alpha": "alpha",
    "orth_reg_weight": "orth_reg",
    "rank": "target_rank",
    "ivon_weight_decay": "weight_decay",
}
BAYESIAN = ("snr", "snr-abs", "magnitude", "precision")
# the sensitivity of the original, in the paper's row names; the others are one row
ROWS = {
    "adalora-adamw-sensitivity": [("adalora", "adamw", "sensitivity")],
    "adalora-ivon-sensitivity": [("adalora", "ivon", "sensitivity")],
    "adalora-ivon-bayesian": [("adalora", "ivon", criterion) for criterion in BAYESIAN],
    "lora-adamw": [("lora", "adamw", None)],
    "full-adamw": [("full", "adamw", None)],
    "full-ivon": [("full", "ivon", None)],
}
# training examples of GLUE's own files (gluebenchmark.com); RTE's 2490, as the reference counts
EXAMPLES = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "qqp": 363846, "stsb": 5749, "mnli": 392702,
    "qnli": 104743, "rte": 2490, "wnli": 635,
}  # fmt: skip


def paper():
    return json.loads(PAPER.read_text(encoding="utf-8"))


def paper_rows():
    """(task, method, optimizer, criterion, rank, values): one for each row and criterion."""
    if not PAPER.is_file():
        return []
    return [
        pytest.param(task, *row, int(rank.removeprefix("rank")), values,
                     id="-".join(filter(None, (task, *row, rank))))
        for task, ranks in paper()["tasks"].items()
        for rank, methods in ranks.items()
        for method, values in methods.items()
        for row in ROWS[method]
    ]  # fmt: skip


@pytest.mark.realdata
@pytest.mark.skipif(not PAPER.is_file(), reason="no ../shared/paper/hyperparameters.json")
def test_the_papers_file_is_read_whole():
    """7 adaptive configurations and a lora at each of 2 ranks, and a full row, for 8 tasks."""
    assert len(paper_rows()) == 8 * (2 * 7 + 1)
    assert {row.values[0] for row in paper_rows()} == set(GLUE_TASKS) - {"wnli"}


@pytest.mark.realdata
@pytest.mark.skipif(not PAPER.is_file(), reason="no ../shared/paper/hyperparameters.json")
@pytest.mark.parametrize(
    ("task", "method", "optimizer", "criterion", "rank", "values"), paper_rows()
)
def test_presets_are_the_reference_runs(task, method, optimizer, criterion, rank, values):
    config = resolve(chosen(task, method, optimizer, criterion) | {"target_rank": rank}).config
    meta = paper()["meta"]
    wanted = {RENAMED.get(name, name): value for name, value in values.items()}
    wanted.setdefault("weight_decay", meta[optimizer]["weight_decay"])
    wanted.setdefault("gradient_checkpointing", False)
    wanted.setdefault("boost_lr", None)
    wanted["model"] = meta["model"]
    if optimizer == "ivon":
        ivon = meta["ivon"]
        wanted |= {
            "ess": None,  # the number of training examples
            "hess_init": ivon["hess_init"],
            "ivon_beta1": ivon["beta1"],
            "ivon_beta2": ivon["beta2"],
            "clip_radius": ivon["clip_radius"],
            "train_samples": ivon["mc_samples_train"],
        }
    if method != "full":
        assert wanted["target_rank"] == rank
    if method == "lora":
        wanted["init_rank"] = rank
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert config.seed in meta["seeds"]


@pytest.mark.parametrize("task", GLUE_TASKS)
@pytest.mark.parametrize(("method", "optimizer", "criterion"), COMBINATIONS)
def test_schedule_steps_are_the_runs_own(task, method, optimizer, criterion):
    """Or a plain run would scale its steps, and no longer be the reference's."""
    config = resolve(chosen(task, method, optimizer, criterion)).config
    a_pass = -(-EXAMPLES[task] // config.batch_size)
    assert config.schedule_steps == a_pass * config.epochs
