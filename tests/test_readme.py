"""README.md and docs/ are finished, what they point to is there, and their commands run."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bayeslora_cli.cli.app import app
from bayeslora_cli.runs.atomic_write import write_json

from .conftest import write_rte
from .frozen_runs import kept
from .support.finished_runs import reseal
from .support.ranked_runs import allocation, names, write_seeds
from .support.scored_runs import score, write_scored

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
LONGEST = 250  # lines of README.md
PLACEHOLDER = re.compile(r"\b(TODO|TBD|FIXME|XXX|N/A|lorem ipsum|X+\.X+)\b|\?\?+", re.IGNORECASE)
DOTS = re.compile(r"(…|\.\.\.+|\?)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


# ---- what a page says and points to


def placeholders(text):
    """Lines with words that stand for what is still to be written, or table cells of only dots."""
    for number, line in enumerate(text.splitlines(), start=1):
        if PLACEHOLDER.search(line):
            yield number
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if any(DOTS.fullmatch(cell) for cell in cells):
                yield number


def targets(text):
    """(path, anchor) of the links and images that are not addresses."""
    text = CODE.sub("", text)
    found = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    found += re.findall(r"^\[[^\]]+\]:\s*<?([^\s>]+)", text, re.MULTILINE)
    found += re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    for target in found:
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def missing(text, root):
    """Targets of links and images that are neither addresses nor files below `root`."""
    return [path for path, _ in targets(text) if path and not (root / path).exists()]


def anchors(text):
    """The anchors that headings have, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub(lambda m: m[0].strip("`"), text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def lost_anchors(page):
    """Links of a page to headings that are not there."""
    text = page.read_text(encoding="utf-8")
    for path, anchor in targets(text):
        target = page.parent / path if path else page
        if not anchor or target.suffix != ".md" or not target.exists():
            continue
        if anchor not in anchors(target.read_text(encoding="utf-8")):
            yield f"{path}#{anchor}"


@every_page
def test_nothing_is_left_to_be_written(page):
    assert list(placeholders(page.read_text(encoding="utf-8"))) == []


@every_page
def test_what_a_page_points_to_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert "](" in text
    assert list(missing(text, page.parent)) == []
    assert list(lost_anchors(page)) == []


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_contents_list_every_page():
    listed = {path for path, _ in targets((DOCS / "README.md").read_text(encoding="utf-8"))}
    assert {page.name for page in PAGES[1:]} - {"README.md"} <= listed


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("TODO: measure", True), ("accuracy X.X", True), ("| MRPC | tbd |", True),
        ("| a | … | 3 |", True), ("| a | ... |", True), ("| ? | a |", True), ("why??", True),
        ("| a | | 3 |", False), ("| a | – |", False), ("`glue/RTE/train.tsv`, …", False),
        ("| `runs/…` | 0.3 |", False), ("max.x", False),
    ],
)  # fmt: skip
def test_placeholders_are_seen(line, found):
    assert list(placeholders(f"x\n{line}")) == [2] * found


def test_dead_links_are_seen(tmp_path):
    (tmp_path / "there.png").touch()
    text = (
        "[a](there.png) ![b](gone.png 'title') [c](https://x.y/z) [d](#part) [e](there.png#f)\n"
        '[g]: away.md\n<img src="lost.svg">\n```\n[h](code.md)\n```\n`[i](inline.md)`\n'
    )
    assert list(missing(text, tmp_path)) == ["gone.png", "away.md", "lost.svg"]


def test_lost_anchors_are_seen(tmp_path):
    (tmp_path / "other.md").write_text("# B-LoRA: `ranks`, by gates\n```\n# code\n```\n")
    page = tmp_path / "page.md"
    page.write_text("## Two Words\n[a](#two-words) [b](#three) [c](other.md#b-lora-ranks-by-gates) "
                    "[d](other.md#code-) [e](gone.md#f)\n")  # fmt: skip
    assert list(lost_anchors(page)) == ["#three", "other.md#code-"]


# ---- the options that a page names


def known_flags():
    """The flags of each subcommand."""
    commands = typer.main.get_command(app).commands
    return {
        name: {"--help", "--help-all"}.union(
            *((*option.opts, *option.secondary_opts) for option in command.params)
        )
        for name, command in commands.items()
    }


def blocks(text, *kinds):
    """Fenced blocks of these languages."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for kind, body in fences if kind in kinds]


def unknown_flags(text):
    """Subcommands and flags that a page names and that do not exist, in blocks and between `s."""
    known = known_flags()
    anywhere = set().union(*known.values())
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)
    lines = [line for block in blocks(text, "console", "bash") for line in joined(block)]
    for code in [" ".join(span.split()) for span in spans] + lines:
        flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code))
        command = re.search(r"\bbayeslora(?:_cli)? (?!-)([\w-]+)", code)
        if command and command[1] not in known:
            yield command[0]
        elif command:
            flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code[command.end() :]))
            yield from sorted(flags - known[command[1]])
        elif code.startswith("--"):
            yield from sorted(flags - anywhere)
        elif flags and (script := re.match(r"python (\S+\.py)", code)):
            source = (ROOT / script[1]).read_text(encoding="utf-8")
            yield from sorted(flag for flag in flags if f'"{flag}"' not in source)


def joined(block):
    """The lines of a shell block without comments; those that a backslash continues as one."""
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        yield re.sub(r"(^|\s)#(?!SBATCH).*", "", line)


@every_page
def test_options_of_a_page_exist(page):
    assert list(unknown_flags(page.read_text(encoding="utf-8"))) == []


def test_unknown_options_are_seen():
    text = (
        "`--seeds` `--sedes` `bayeslora eval --samples 2 --sample` `bayeslora tain`\n"
        "```bash\nsrun --gpus=1 bayeslora train --task rte \\\n  --tusk rte  # --no\n```\n"
        "`python tests/benchmarks/cpu_step.py --steps 1 --stepps 2` `sbatch --x`\n"
    )
    assert list(unknown_flags(text)) == [
        "--sedes", "--sample", "bayeslora tain", "--stepps", "--tusk"
    ]  # fmt: skip


# ---- the commands

RUN_OF = {"blora.md": "blora-adamw"}  # else:
RUN = "adalora-ivon-snr"
TASKS = ("rte", "mrpc", "stsb", "cola", "sst2", "demo")
ROWS = (("ivon", "snr"), ("ivon", "sensitivity"), ("adamw", "sensitivity"))
SEEDS = (2021, 2022)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the pages' commands find in their directory: data, runs of two rows, a run of each."""
    root = kept.put_inputs(tmp_path_factory.mktemp("pages").resolve())
    write_rte(root / "glue")
    for name in ("train.csv", "dev.csv"):
        (root / name).write_text("text,stars\ngood,5\nbad,1\nfine,5\npoor,1\n")
    rows = "a b,c d\nw1 w2,w3\nw4,w5 w6\nw7 w8,w9\n"
    (root / "other.csv").write_text(rows.replace("a b,c d", "premise,hypothesis"))
    (root / "new.jsonl").write_text('{"premise": "w1", "hypothesis": "w2"}\n' * 3)
    for task, (optimizer, criterion), seed in itertools.product(TASKS, ROWS, SEEDS):
        run = write_scored(
            root / "runs", task, score("snr", "rte", seed), seed=seed, optimizer=optimizer,
            criterion=criterion, target_modules=("query", "dense"),
        )  # fmt: skip
        report = allocation(names(2), seed=seed, criterion=criterion)
        write_json(run.ranks, report.to_json())
        reseal(run.path)
    for _, criterion in ROWS[:2]:
        write_seeds(root / f"{criterion.upper()}_RUNS", names(2), SEEDS, criterion=criterion)
    return root


def words_of(script, cwd):
    """The commands of a shell script, each as its words: the shell reads it, nothing is run."""
    say = "".join(
        f'{name}() {{ printf "%s\\0" {name} "$@"; printf "\\036\\0"; }}\n'
        for name in ("bayeslora", "python")
    )
    done = subprocess.run(
        ["bash", "-c", f"set -eu\nPATH=\n{say}{script}"],
        capture_output=True, text=True, cwd=cwd, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    commands = done.stdout.split("\036\0")
    return [command.rstrip("\0").split("\0") for command in commands if command]


def offline(words):
    """A command as it can be run here: a training is resolved and printed, unless it is planned."""
    looks = {"--dry-run", "--list-presets", "--print-commands"}
    return words if words[1] != "train" or looks & set(words) else [*words, "--print-commands"]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if blocks(p.read_text(encoding="utf-8"), "console")],
    ids=lambda page: str(page.relative_to(ROOT)),
)  # fmt: skip
@pytest.mark.usefixtures("few_demo_rows")
def test_commands_of_a_page_run(page, inputs, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    name = RUN_OF.get(page.name, RUN)
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for block in blocks(text, "toml"):
        if file := re.match(r"# ([\w-]+\.toml)\n", block):
            Path(file[1]).write_text(block)
    for block in blocks(text, "python"):
        if file := re.match(r"# ([\w-]+\.py)\n", block):
            Path(file[1]).write_text(block)
    commands = words_of("\n".join(blocks(text, "console")), tmp_path)
    assert commands
    if any("RUN" in words for words in commands):
        put_run(name, tmp_path / "RUN", inputs)
    for words in commands:
        if words[0] == "python" and (ROOT / words[1]).is_file():
            continue  # benchmarks take minutes; their options are checked above
        if words[0] == "python":  # a script of the page
            subprocess.run([sys.executable, *words[1:]], check=True)
            continue
        said = kept.bayeslora(*offline(words)[1:])
        assert said.code == 0, f"{shlex.join(words)}\n{said.err}"
        assert said.out


def put_run(name, run, root):
    """A finished run of the frozen ones, at a path of its own."""
    shutil.copytree(kept.DATA / name / "finished", run)
    for path in run.rglob("*"):
        if path.suffix in kept.TEXTS and kept.ROOT in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(kept.ROOT, str(root)), encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")  # PEFT older than the run's
def test_the_adapter_is_loaded_as_the_page_says(inputs, tmp_path, monkeypatch):
    (code,) = blocks((DOCS / "run-directory.md").read_text(encoding="utf-8"), "python")
    put_run(RUN, tmp_path / "RUN", inputs)
    monkeypatch.chdir(tmp_path)
    code = code.replace("runs/.../", "RUN/")
    code = code.replace("microsoft/deberta-v3-base", str(inputs / "tiny-deberta"))
    found = {}
    exec(compile(code, "run-directory.md", "exec"), found)
    assert found["model"].config.id2label
