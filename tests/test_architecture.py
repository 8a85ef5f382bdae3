"""The cut of the package: who may import whom, held against the table of the design."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bayeslora_cli

PACKAGE = Path(bayeslora_cli.__file__).parent
FILES = {path.stem: path for path in sorted(PACKAGE.glob("*.py"))}
LONGEST = 350  # lines; a file has one job

HEAVY = {
    "torch", "transformers", "peft", "datasets", "sklearn", "scipy", "numpy", "safetensors",
    "torchmetrics", "matplotlib",
}  # fmt: skip
# modules that answer without the heavy libraries, so that `bayeslora --help` is there at once
LIGHT = {
    "__init__",
    "__main__",
    "errors",
    "config",
    "config_file",
    "effects",
    "atomic",
    "rundir",
    "schedules",
    "report",
    "glue",
    "cli",
    "commands",
    "options",
    "presets",
    "resolve",
    "console",
    "shades",
    "heatmap",
    "demo",
    "tasks",
    "predictions",
    "reliability",
    "tables",
    "own_data",
    "card",
    "export_options",
    "hub",
    "intervals",
    "signals",
    "lock",
    "sweep",
    "sweep_run",
    "sweep_jobs",
    "results",
    "results_table",
    "results_text",
    "results_command",
    "trackers",
    "ladder",
    "bit_operations",
    "processes",
    "launch",
    "worker",
}
# library -> its only importers, function bodies included
ONLY = {
    "transformers": {"backbone", "plain"},
    "peft": {"backbone", "adapter_files", "plain"},
    "ivon": {"optim"},
    "triton": {"gated_kernels", "quantizer_kernels", "skew_kernel"},
    "datasets": {"data", "tables"},
    "typer": {"cli", "commands", "options"},
    "sklearn": {"metrics"},
    "scipy": {"metrics", "paired"},
    "torchmetrics": {"metrics"},
    "onnxruntime": {"onnx_file"},
    "huggingface_hub": {"hub"},
    "subprocess": {"sweep_jobs"},
    "wandb": {"trackers"},
    "mlflow": {"trackers"},
    "trackio": {"trackers"},
    "matplotlib": {
        "reliability",
        "figure",
        "figure_parts",
        "figure_heatmap",
        "figure_small",
        "figure_curves",
    },
}
# module -> all that it may import of the project, function bodies included: the foundations, whose
# independence lets them be read and tested alone; the modules above them are free but for cycles
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "criteria": set(),
    "schedules": set(),
    "rank_correlation": set(),
    "metrics": {"rank_correlation"},
    "low_rank": set(),
    "adapters": {"low_rank"},
    "factors": {"adapters", "bank"},
    "skew": set(),
    "cpu_dropout": set(),
    "skew_kernel": {"skew"},
    "deberta": {"adapters", "skew", "skew_kernel"},
    "bank": set(),
    "quantizer": {"quantizer_kernels"},
    "quantizer_kernels": set(),
    "hard_concrete": set(),
    "bit_operations": set(),
    "ladder": set(),
    "gated_kernels": {"quantizer", "quantizer_kernels"},
    "gated_product": {"gated_kernels", "quantizer"},
    "gated": {"adapters", "gated_product", "low_rank", "quantizer"},
    "gates": {"bank", "factors", "gated", "hard_concrete", "quantizer"},
    "gate_schedule": {"config", "hard_concrete", "ladder"},
    "gate_ranges": {"compiler", "gated", "gates", "model", "quantizer"},
    "intervals": set(),
    "signals": {"errors"},
    "lock": {"errors"},
    "processes": {"errors", "signals", "bank", "checkpoint"},
    "launch": {"processes", "signals", "together"},
    "agreement": {"signals"},
    "together": {"errors", "signals", "agreement", "bank", "checkpoint", "processes"},
    "config": {"errors", "intervals", "ladder"},
    "config_file": {"errors", "config"},
    "presets": {"errors", "config", "config_file"},
    "effects": {"config"},
    "resolve": {"effects", "errors", "config", "presets"},
    "tasks": {"errors"},
    "glue": {"errors", "tasks"},
    "device": {"errors"},
    "atomic": {"errors"},
    "rundir": {"effects", "errors", "atomic", "config", "config_file", "tasks"},
    "token_cache": {"atomic", "batches", "errors", "fingerprint", "lock", "tasks"},
    "shared": {"batches", "config", "data", "tasks", "token_cache"},
    "trackers": {"effects", "errors", "atomic", "config", "config_file", "rundir"},
    "results": {"effects", "errors", "config", "resolve", "rundir"},
    "results_table": {"console", "errors", "results"},
    "results_text": {"results_table", "shades"},
    "paired": {"errors", "results"},
    "sweep": {"effects", "errors", "config", "resolve", "rundir"},
    "sweep_jobs": {"errors", "atomic", "config", "console", "signals", "sweep"},
    "worker": {"cli", "shared"},
    "report": {"errors", "rundir"},
    "shades": set(),
    "heatmap": {"report", "shades"},
    "allocations": {
        "effects",
        "errors",
        "rank_correlation",
        "report",
        "rundir",
        "shades",
        "heatmap",
    },
    "views": {"report", "shades", "heatmap", "allocations"},
    "history": {
        "bit_operations",
        "errors",
        "rank_correlation",
        "report",
        "rundir",
        "shades",
        "heatmap",
        "allocations",
    },
    "scores": {
        "console",
        "errors",
        "rank_correlation",
        "report",
        "shades",
        "heatmap",
        "allocations",
    },
    "figure_parts": set(),
    "figure_small": {"heatmap", "figure_parts"},
    "figure_heatmap": {"heatmap", "figure_parts", "figure_small"},
    "figure_curves": {"history", "scores", "figure_parts"},
    "console": {"report", "heatmap"},
    "checkpoint": {"atomic", "errors", "intervals"},
    "demo": {"tasks"},
    "tables": {"errors"},
    "own_data": {"errors", "tables", "tasks"},
    "data": {"errors", "config", "glue", "tasks", "demo", "tables", "own_data"},
    "predictions": {"atomic", "errors", "glue", "tasks"},
    "other_rows": {"errors", "config", "glue", "tasks", "demo", "tables", "own_data", "data"},
    "predictive": {"metrics"},
    "reliability": {"atomic", "errors"},
    "backbone": {"errors", "config"},
    "fingerprint": set(),
    "folding": set(),
    "card": {"config", "tasks"},
    "hub": {"errors"},
    "export_options": {"errors", "config", "hub"},
    # what checks an export has no model code of ours: `adapter_files` lends it a folder's name
    "plain": {"adapter_files"},
    "onnx_file": {"errors", "plain"},
    "model": {
        "errors",
        "config",
        "cpu_dropout",
        "adapters",
        "backbone",
        "bank",
        "deberta",
        "factors",
        "fingerprint",
        "gated",
        "gates",
        "ladder",
    },
    "gate_report": {"bit_operations", "model"},
    "optim": {"bank", "config"},
    "penalty": {"bank"},
    "allocator": {"bank", "criteria", "schedules"},
}
# the top: nothing below may reach up to them
IMPORTED_BY = {
    "cli": {"__main__", "worker"},
    "engine": {"cli", "sweep_run"},
    "plan": {"cli"},
    "export": {"commands"},
    "inspect_ranks": {"commands"},
    "__main__": set(),
}


class Imports(ast.NodeVisitor):
    """Names that a file imports: `always` at import, `ever` in function bodies too.

    Under `if TYPE_CHECKING:` nothing is imported when the program runs, but for the cut it counts
    as the dependency that it is: those are in neither set, and in `typed`.
    """

    def __init__(self, source):
        self.always, self.ever, self.typed = set(), set(), set()
        self.depth = self.typing = 0
        self.visit(ast.parse(source))

    def note(self, names):
        if self.typing:
            self.typed |= names
            return
        self.ever |= names
        if not self.depth:
            self.always |= names

    def visit_Import(self, node):
        self.note({alias.name for alias in node.names})

    def visit_ImportFrom(self, node):
        assert node.level == 0, "absolute imports only"
        # `from package import module` names a module only together with its package
        self.note({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node):
        typing = "TYPE_CHECKING" in ast.unparse(node.test)
        self.typing += typing
        for child in node.body:
            self.visit(child)
        self.typing -= typing
        for child in node.orelse:
            self.visit(child)


def libraries(names):
    return {name.partition(".")[0] for name in names} - {"bayeslora_cli"}


def project(names):
    """Modules of the package among imported names."""
    parts = {name.split(".")[1] for name in names if name.startswith("bayeslora_cli.")}
    return {part for part in parts if part in FILES}


IMPORTS = {name: Imports(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def test_the_visitor_sees():
    """What this file rests on: each kind of import lands where the tests look for it."""
    found = Imports(
        "import a.b\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import c\nelse:\n    import d\n"
        "try:\n    import e\nexcept ImportError:\n    from f import g\n"
        "def x():\n    import h\n    def y():\n        from bayeslora_cli import errors\n"
        "class Z:\n    import i\n    async def z(self):\n        from j import k\n"
    )
    assert libraries(found.always) == {"a", "typing", "d", "e", "f", "i"}
    assert libraries(found.ever) == {"a", "typing", "d", "e", "f", "i", "h", "j"}
    assert found.typed == {"c"}
    assert project(found.ever) == {"errors"}
    assert project(found.always) == set()


def test_tables_name_modules_that_exist():
    """A renamed module would otherwise slip through under its new name."""
    named = LIGHT | set(MAY_IMPORT) | set(IMPORTED_BY) | set().union(*ONLY.values())
    assert named <= FILES.keys()


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_modules_import_nothing_heavy(name):
    """Nor does anything that they import at once."""
    seen, todo = set(), {name}
    while todo:
        module = todo.pop()
        seen.add(module)
        assert not libraries(IMPORTS[module].always) & HEAVY, f"{name} -> {module}"
        todo |= project(IMPORTS[module].always) - seen


@pytest.mark.parametrize("library", ONLY)
def test_libraries_with_one_door(library):
    importers = {n for n, i in IMPORTS.items() if library in libraries(i.ever | i.typed)}
    assert importers == ONLY[library]


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_foundations_import_what_the_table_says(name):
    imports = IMPORTS[name]
    assert project(imports.ever | imports.typed) <= MAY_IMPORT[name]


@pytest.mark.parametrize("name", IMPORTED_BY)
def test_nothing_reaches_up(name):
    importers = {n for n, i in IMPORTS.items() if name in project(i.ever | i.typed)}
    assert importers <= IMPORTED_BY[name]


def test_nothing_runs_what_a_file_or_a_name_says():
    """No pickle, no shell, no code made of text: files from elsewhere are data.

    The one door of `subprocess` (see ONLY) starts this program again, without a shell.
    """
    banned = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}
    calls = {
        "eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system",
        "os.popen", "importlib.import_module", "np.load",
    }  # fmt: skip
    for name, path in FILES.items():
        assert not libraries(IMPORTS[name].ever) & banned, name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in calls, f"{name}: {called}"
                assert not any(keyword.arg == "shell" for keyword in node.keywords), name


def test_schedules_are_plain_python():
    assert libraries(IMPORTS["schedules"].ever) <= set(sys.stdlib_module_names)
    # criteria know tensors by their methods alone
    assert libraries(IMPORTS["criteria"].ever) <= set(sys.stdlib_module_names)


def test_no_cycles():
    """Function bodies included: an import put there to break a cycle only hides it."""
    graph = {name: project(imports.ever | imports.typed) for name, imports in IMPORTS.items()}
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_are_short(name):
    lines = len(FILES[name].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST, f"{FILES[name].name} has {lines} lines: it has more than one job"


def test_package_is_flat_and_has_no_drawer():
    assert not [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE]
    assert not {"utils", "util", "helpers", "common", "misc"} & FILES.keys()


def test_the_command_line_starts_light():
    """The same as above, of the interpreter itself: third-party imports count as well."""
    program = (
        "import sys, bayeslora_cli.cli\n"
        f"print(*(name for name in {sorted(HEAVY)} if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
