"""presets/*.toml: well-formed by themselves, and held against the reference runs' settings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from bayeslora_cli.config.catalogue import GLUE_TASKS, TASK_NAMES
from bayeslora_cli.config.effects import check_schedule
from bayeslora_cli.config.files.presets import list_presets, presets_directory, task_chain
from bayeslora_cli.config.files.toml_files import to_toml
from bayeslora_cli.config.resolution import resolve
from bayeslora_cli.config.run_config import OPTIONS
from bayeslora_cli.errors import ConfigError
from bayeslora_cli.runs.directory import run_name

PAPER = Path(__file__).parents[4] / "shared" / "paper" / "hyperparameters.json"
CRITERIA = {
    ("adalora", "ivon"): ("snr", "sensitivity", "snr-abs", "magnitude", "precision"),
    ("adalora", "adamw"): ("sensitivity", "magnitude"),
    ("lora", "adamw"): (None,),
    ("lora", "ivon"): (None,),
    ("full", "adamw"): (None,),
    ("full", "ivon"): (None,),
    ("blora", "adamw"): (None,),
    ("blora", "ivon"): (None,),
}
COMBINATIONS = [(m, o, c) for (m, o), criteria in CRITERIA.items() for c in criteria]
SECTIONS = (
    {m for m, _, _ in COMBINATIONS}
    | {f"{m}-{o}" for m, o, _ in COMBINATIONS}
    | {f"{m}-{o}-{c}" for m, o, c in COMBINATIONS if c}
)
# what the command line alone decides: a preset that set them would surprise
NEVER_IN_PRESETS = {
    "data", "model", "train_file", "eval_file", "method", "optimizer", "criterion", "target_rank",
    "init_rank", "target_modules", "max_steps", "seed", "precision", "device", "output",
    "overwrite",
}  # fmt: skip


def read(task):
    return tomllib.loads((presets_directory() / f"{task}.toml").read_text(encoding="utf-8"))


def chosen(task, method, optimizer, criterion):
    typed = {"task": task, "method": method, "optimizer": optimizer}
    return typed | ({} if criterion is None else {"criterion": criterion})


# ---- without the paper's file


@pytest.fixture
def write(tmp_path):
    """Write a preset: its path, as it would be typed."""

    def make(name, text):
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


def test_a_preset_lies_over_the_tasks_own(write):
    """Its top level over all rows of what it lies over, its own sections over its top level."""
    name = write("mine", 'task = "rte"\nlr = 7\n[adalora]\nalpha = 8.5\n[adalora-adamw]\nlr = 3\n')
    ivon = resolve({}, name)
    assert (ivon.config.task, ivon.config.lr, ivon.config.alpha) == ("rte", 7.0, 8.5)
    assert ivon.config.epochs == 50
    assert ivon.sources["lr"] == f"preset {name}"
    assert ivon.sources["epochs"] == "preset rte"
    assert ivon.changed == {"lr": 7.0, "alpha": 8.5}
    assert resolve({"optimizer": "adamw"}, name).config.lr == 3.0
    assert resolve({"lr": 0.5, "task": "cola"}, name).config.lr == 0.5
    assert resolve({"task": "cola"}, name).config.epochs == 25


def test_a_table_holds_values_for_rows_of_its_method_or_optimizer(write):
    name = write("mine", "lr = 1\n[ivon]\nhess_init = 2\nlr = 3\n[blora]\nlambda_rank = 0.5\n"
                 "[adalora-ivon]\nlr = 4\n")  # fmt: skip

    def values(**row):
        config = resolve({"task": "rte", **row}, name).config
        return config.lr, config.hess_init, config.lambda_rank

    assert values() == (4.0, 2.0, 0.1)
    assert values(optimizer="adamw") == (1.0, 1.0, 0.1)
    assert values(method="blora") == (1.0, 1.0, 0.5)
    assert values(method="blora", optimizer="ivon") == (3.0, 2.0, 0.5)
    assert values(method="full", optimizer="ivon") == (3.0, 2.0, 0.1)


def test_tables_are_a_way_to_write_presets_only(write):
    """config.toml and the hash in a directory's name are those of the same values at the top."""
    row = {"task": "rte", "method": "blora", "optimizer": "ivon"}
    tables = write("a", "[ivon]\nhess_init = 2\n[blora]\nlambda_rank = 0.5\n")
    in_tables = resolve(row, tables)
    at_top = resolve(row, write("b", "hess_init = 2\nlambda_rank = 0.5\n"))
    typed = resolve(row | {"hess_init": 2.0, "lambda_rank": 0.5})
    assert in_tables.config == at_top.config == typed.config
    assert to_toml(in_tables.config) == to_toml(typed.config)
    assert in_tables.changed == at_top.changed == typed.changed
    assert run_name(in_tables) == run_name(at_top) == run_name(typed)
    assert in_tables.sources["hess_init"] == f"preset {tables}"


def test_a_preset_extends_another_by_name_or_file(write):
    write("base", 'extends = "mrpc"\ntask = "cola"\nepochs = 2\nseed = 9\n')
    resolved = resolve({}, write("top", 'extends = "base.toml"\nseed = 10\nmethod = "lora"\n'))
    config = resolved.config
    assert (config.task, config.method, config.optimizer) == ("cola", "lora", "adamw")
    assert (config.epochs, config.seed, config.t_init) == (2.0, 10, 0)
    assert config.max_length == 320  # MRPC's, not CoLA's
    assert config.lr == 0.0002
    assert resolved.sources["max_length"] == "preset mrpc"


def test_step_numbers_belong_to_their_own_files_total(write):
    """demo's are of 225 steps: what another total inherits is scaled to it."""
    name = write("a", 'extends = "demo"\nschedule_steps = 1000\nt_init = 100\n')
    config = resolve({}, name).config
    assert (config.t_init, config.t_final, config.boost_until_step) == (100, 400, 666)
    assert (config.schedule_steps, config.delta_t) == (1000, 22)
    config = resolve({}, write("b", 'extends = "demo"\nmax_steps = 9\nt_init = 3\n')).config
    assert (config.schedule_steps, config.t_init, config.t_final) == (9, 3, 3)
    config = resolve({}, write("c", 'extends = "demo"\nmax_steps = 9\n')).config
    assert (config.schedule_steps, config.t_init) == (225, 45)  # scaled later, with a notice


def test_a_preset_that_says_nothing_of_the_row_is_noticed():
    typed = {"task": "rte", "method": "lora"}
    (notice,) = resolve(typed, "learned-posterior").notices
    assert notice == "--preset learned-posterior has no effect: it says nothing of lora-adamw"
    assert not resolve({"task": "rte"}, "learned-posterior").notices
    with pytest.raises(ConfigError, match="a --preset that names a task"):
        resolve({}, "learned-posterior")


def test_ivon_lora_takes_the_published_step():
    """Of 2411.04421: lr 0.03 without `rescale_lr`, so that lr times h0 is 0.03 here."""
    config = resolve({"task": "arc-easy"}, "ivon-lora").config
    assert (config.method, config.optimizer, config.task) == ("lora", "ivon", "arc-easy")
    assert config.lr * (config.hess_init + config.weight_decay) == pytest.approx(0.03)
    assert (config.target_rank, config.alpha, config.batch_size) == (8, 16, 4)
    assert (config.max_steps, config.schedule_steps, config.warmup_steps) == (10_000, 10_000, 0)


def test_files_of_ones_own_take_the_settings_of_any_preset(write):
    files = {"train_file": "hub/name"}
    config = resolve(files, "mnli").config
    assert (config.task, config.epochs, config.alpha) == ("custom", 7.0, 16.0)
    assert resolve(files, write("mine", 'extends = "quickstart"')).config.dropout == 0.0
    with pytest.raises(ConfigError, match="not together with --task mnli"):
        resolve(files | {"task": "mnli"})


def test_files_of_a_preset_are_absolute_too(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\n")
    config = resolve({}, write("mine", 'train_file = "a.csv"\neval_file = "hub/name"\n')).config
    assert (config.task, config.epochs) == ("custom", 10)
    assert config.train_file == str(tmp_path.resolve() / "a.csv")
    assert config.eval_file == "hub/name"


def test_the_built_in_name_is_the_tasks_own():
    named, own = resolve({}, "rte"), resolve({"task": "rte"})
    assert (named.config, named.changed) == (own.config, own.changed)
    assert resolve({}, "quickstart").config.task == "demo"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("leraning_rate = 1", r"leraning_rate is no option"),
        ("batchsize = 1", r"batchsize is no option \(did you mean batch_size\?\)"),
        ("[adalora-adamv]\nlr = 1.0", r"\[adalora-adamv\] is no method row .*adalora-adamw\?"),
        ("[adalora]\nlrr = 1.0", r"lrr is no option \(did you mean lr\?\)"),
        ("[adalora]\nmethod = 'lora'", r"\[adalora\] method: belongs to the top"),
        ("[lora]\northo = 1", r"ortho is no option"),
        ("[lora]\north_reg = 1", r"\[lora\] orth_reg: has no effect with --method lora"),
        ("[blora]\ntarget_rank = 1", r"\[blora\] target_rank: has no effect .* gates find the"),
        ("[adamw]\ness = 1", r"ess: has no effect with --optimizer adamw"),
        ("[full-adamw]\nalpha = 1", r"\[full-adamw\] alpha: has no effect with --method full"),
        ("[lora-ivon]\ndelta_t = 1", r"\[lora-ivon\] delta_t: has no effect with --method lora"),
        ("[ivon]\noptimizer = 'adamw'", r"\[ivon\] optimizer: belongs to the top"),
        ("[full]\nlr = 1\n[ivon]\nlr = 2", r"lr is in \[full\] and in \[ivon\]: .* \[full-ivon\]"),
        ("lr = 'fast'", r"lr = 'fast': must be a number"),
        ("epochs = true", r"epochs = True: must be a number"),
        ("seed = 1.5", r"seed = 1.5: must be a whole number"),
        ("trust_remote_code = true", r"only the command line can allow code to run"),
        ("lr = 1" + 400 * "0", r"is too large"),
        ("overwrite = 1", r"overwrite = 1: must be true or false"),
        ("target_modules = 'query'", r"target_modules = 'query': must be a list of strings"),
        ("target_modules = [1]", r"target_modules = \[1\]: must be a list of strings"),
        ("lr = ", r"cannot be read"),
        ("extends = 'quikstart'", r"extends quikstart: no such preset \(did you mean quickstart"),
        ("extends = 'bad.toml'", r"extends itself"),
        ("extends = 3", r"extends = 3: must be a string"),
        ("extend = 'rte'", r"extend is no option \(did you mean extends\?\)"),
    ],
)
def test_what_is_wrong_with_a_preset(write, text, problem):
    name = write("bad", text)
    with pytest.raises(ConfigError, match=problem) as caught:
        resolve({"task": "rte"}, name)
    assert name in str(caught.value)


def test_all_problems_of_a_preset_at_once(write):
    with pytest.raises(ConfigError) as caught:
        resolve({"task": "rte"}, write("bad", "lrr = 1\nepoch = 2\n[adalora]\nlr = 'x'\n"))
    assert len(caught.value.problems) == 3


def test_presets_that_do_not_exist():
    for name in ("quickstrat", "no/such.toml"):
        with pytest.raises(ConfigError, match=f"--preset {name}: no such preset"):
            resolve({}, name)


def test_every_built_in_preset_is_listed_with_a_word_on_it():
    found = list_presets()
    others = {"causal", "ivon-lora", "quickstart", "learned-posterior", "multiple-choice"}
    assert found.keys() == {*TASK_NAMES} | others
    assert all(10 < len(text) < 120 for text in found.values())


def test_one_file_a_task():
    assert {path.stem for path in presets_directory().glob("*")} == {
        *TASK_NAMES,
        "causal",
        "ivon-lora",
        "quickstart",
        "learned-posterior",
        "multiple-choice",
    }


@pytest.mark.parametrize("task", GLUE_TASKS)
def test_sections_and_keys_are_known(task):
    """resolve() reads the sections of one row: a misspelt section would never be noticed."""
    table = read(task)
    sections = {name: value for name, value in table.items() if isinstance(value, dict)}
    assert sections.keys() <= SECTIONS
    assert all(sections.values()), "an empty section says nothing"
    for values in ({k: v for k, v in table.items() if k not in sections}, *sections.values()):
        assert values.keys() <= OPTIONS.keys() - NEVER_IN_PRESETS
        assert not any(isinstance(value, dict | list) for value in values.values())


@pytest.mark.parametrize("task", TASK_NAMES)
@pytest.mark.parametrize(("method", "optimizer", "criterion"), COMBINATIONS)
def test_every_row_resolves(task, method, optimizer, criterion):
    """Into a schedule that fits its own length, with a learning rate that somebody chose."""
    typed = chosen(task, method, optimizer, criterion)
    resolved = resolve(typed | ({"train_file": "a", "eval_file": "b"} if task == "custom" else {}))
    config = resolved.config
    check_schedule(config, config.schedule_steps)
    expected = {"lr", "epochs", "batch_size", "max_length", "schedule_steps"}
    expected |= {"weight_decay"} if optimizer == "ivon" else set()
    expected |= {"alpha"} if method != "full" else set()
    expected |= {"t_init", "t_final", "delta_t", "orth_reg"} if method == "adalora" else set()
    expected |= {"t_init", "t_final"} if method == "blora" else set()
    own = {f"preset {name}" for name, _ in task_chain(task)}
    assert {name for name in expected if resolved.sources[name] not in own} == set()
    # the values' types are the fields': TOML's 3 and 3.0 differ
    for name, field in OPTIONS.items():
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
    recomputes = wanted.get("gradient_checkpointing", False)
    wanted["gradient_checkpointing"] = "blocks" if recomputes else "off"
    wanted.setdefault("boost_lr", None)
    wanted["model"] = meta["model"]
    if optimizer == "ivon":
        ivon = meta["ivon"]
        wanted |= {
            "ess": None,  # the number of training examples
            "ess_per_example": 1.0,
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
