"""The cut of the package: folders in one order, each importing only those before it."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bayeslora_cli

PACKAGE = Path(bayeslora_cli.__file__).parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent == PACKAGE
}
LONGEST = 350  # lines; a file has one job
MOST_FILES = 9  # in a folder; more want subfolders

# a folder, or a file at the top, imports only what stands before it
ORDER = (
    "errors", "config", "tasks", "runs", "models", "execution", "data", "bayes", "methods",
    "evaluation", "reports", "export", "quantized_file", "training", "sweeps", "api",
    "cli",
    "__main__", "__init__",
)  # fmt: skip

HEAVY = {
    "torch", "transformers", "peft", "datasets", "sklearn", "scipy", "numpy", "safetensors",
    "torchmetrics", "matplotlib",
}  # fmt: skip
# what answers without the heavy libraries, so that `bayeslora --help` is there at once
LIGHT = (
    "__init__", "__main__", "errors", "config.*", "tasks.task", "tasks.sources.*", "runs.*",
    "reports.run_summary", "reports.terminal_*", "reports.results.*", "sweeps.*", "api.*", "cli.*",
    "export.request", "export.hub_upload", "execution.processes", "execution.signals",
    "execution.launch_environment", "methods.schedules",
)  # fmt: skip
NOT_LIGHT = (
    "runs.checkpoint", "runs.environment", "tasks.sources.loading",
    "tasks.sources.comparison_rows", "reports.results.paired_test",
)  # fmt: skip
# what a command imports of the package: it calls the verbs of the Python API, and prints
COMMANDS_USE = (
    "api.*", "cli.*", "config.*", "errors",
    # signals and several processes, before there is a run
    "execution.launch_environment", "execution.signals", "sweeps.grid", "sweeps.runner",
    # drawing
    "reports.figures.*", "reports.results.paired_test", "reports.run_summary",
    "reports.terminal_*",
)  # fmt: skip
# library -> its only importers, function bodies included
ONLY = {
    "transformers": {
        "models.backbones.*",
        "models.base_weights.streaming",
        "export.independent_reader",
    },
    "bitsandbytes": {"models.base_weights.bitsandbytes_codes"},
    "peft": {"models.backbones.*", "export.formats.*", "export.independent_reader"},
    "ivon": {"bayes.ivon"},
    "triton": {"models.kernels.*_triton"},
    "datasets": {"tasks.sources.*"},
    "typer": {"cli.*"},
    "sklearn": {"tasks.metrics", "tasks.calibration"},
    "scipy": {"tasks.metrics", "tasks.calibration", "reports.results.paired_test"},
    "torchmetrics": {"tasks.calibration"},
    "onnxruntime": {"export.formats.onnx_model"},
    "huggingface_hub": {"export.hub_upload", "runs.model_card"},
    "filelock": {"runs.file_lock"},
    "subprocess": {"sweeps.workers"},
    "wandb": {"runs.trackers"},
    "mlflow": {"runs.trackers"},
    "trackio": {"runs.trackers"},
    "matplotlib": {"reports.figures.*"},
    "plotly": {"reports.page.page"},
    "http": {"reports.page.live_server"},
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
    """Files of the package among imported names."""
    inside = (name.removeprefix("bayeslora_cli.") for name in names if "bayeslora_cli." in name)
    return {name for name in inside if name in FILES}


def folder(name):
    """What of `ORDER` a file belongs to."""
    return name.partition(".")[0]


def matching(patterns):
    """Files that match any of the patterns."""
    return {name for name in FILES if any(fnmatch(name, pattern) for pattern in patterns)}


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


def test_patterns_name_files_that_exist():
    """A renamed file would otherwise slip through under its new name."""
    for pattern in (*LIGHT, *NOT_LIGHT, *COMMANDS_USE, *set().union(*ONLY.values())):
        assert matching([pattern]), pattern


def test_every_folder_has_its_place():
    assert {folder(name) for name in FILES} == set(ORDER)


@pytest.mark.parametrize("name", sorted(FILES))
def test_only_what_stands_before_is_imported(name):
    imports = IMPORTS[name]
    before = ORDER[: ORDER.index(folder(name)) + 1]
    for other in project(imports.ever | imports.typed):
        assert folder(other) in before, f"{name} imports {other}"


def test_kernels_import_nothing_of_ours():
    for name in matching(["models.kernels.*"]):
        others = project(IMPORTS[name].ever | IMPORTS[name].typed)
        assert all(other.startswith("models.kernels.") for other in others), name


def test_what_checks_an_export_has_no_model_code_of_ours():
    imports = IMPORTS["export.independent_reader"]
    assert {folder(name) for name in project(imports.ever)} <= {"errors", "export"}


@pytest.mark.parametrize("name", sorted(matching(LIGHT) - matching(NOT_LIGHT)))
def test_light_files_import_nothing_heavy(name):
    """Nor does anything that they import at once."""
    seen, todo = set(), {name}
    while todo:
        file = todo.pop()
        seen.add(file)
        assert not libraries(IMPORTS[file].always) & HEAVY, f"{name} -> {file}"
        todo |= project(IMPORTS[file].always) - seen


@pytest.mark.parametrize("name", sorted(matching(["cli.*"])))
def test_commands_call_the_verbs_of_the_api(name):
    imports = IMPORTS[name]
    assert project(imports.ever | imports.typed) <= matching(COMMANDS_USE)


@pytest.mark.parametrize("library", ONLY)
def test_libraries_with_one_door(library):
    importers = {n for n, i in IMPORTS.items() if library in libraries(i.ever | i.typed)}
    assert importers
    assert importers <= matching(ONLY[library])


def test_nothing_runs_what_a_file_or_a_name_says():
    """No pickle, no shell, no code made of text: files from elsewhere are data.

    The one door of `subprocess` (see ONLY) starts this program again, without a shell. The one
    import by name is the catalogue's, of what the program itself has entered there.
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
                if (name, called) == ("config.catalogue", "importlib.import_module"):
                    continue
                assert called not in calls, f"{name}: {called}"
                assert not any(keyword.arg == "shell" for keyword in node.keywords), name


def test_schedules_are_plain_python():
    for name in ("methods.schedules", "bayes.criteria"):  # criteria know tensors by their methods
        assert libraries(IMPORTS[name].ever) <= set(sys.stdlib_module_names)


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
    assert lines <= LONGEST, f"{name} has {lines} lines: it has more than one job"


def test_folders_are_small_and_none_is_a_drawer():
    folders = {path.parent for path in FILES.values()}
    for path in folders - {PACKAGE}:
        files = [name for name in path.glob("*.py") if name.name != "__init__.py"]
        assert len(files) <= MOST_FILES, f"{path.name} has {len(files)} files"
    names = {part for name in FILES for part in name.split(".")}
    assert not {"utils", "util", "helpers", "common", "misc"} & names


def test_tests_lie_where_the_files_do():
    tests = Path(__file__).parent
    for path in tests.rglob("test_*.py"):
        place = path.parent.relative_to(tests)
        assert place.parts[:1] in ((), ("gpu",)) or (PACKAGE / place).is_dir(), path.name


def test_the_command_line_starts_light():
    """The same as above, of the interpreter itself: third-party imports count as well."""
    program = (
        "import sys, bayeslora_cli.cli.app\n"
        f"print(*(name for name in {sorted(HEAVY)} if name in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
