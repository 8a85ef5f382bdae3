"""What training says in a terminal and elsewhere. Terminals are played, the clock is set."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bayeslora_cli.cli import progress as module
from bayeslora_cli.cli.progress import Progress, set_up_logging
from bayeslora_cli.config.values import duration
from bayeslora_cli.reports.run_summary import closing_table, side_by_side
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport
from bayeslora_cli.training.run_log import Reporter

logger = logging.getLogger("bayeslora")


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch):
    """A logger as it was, and an environment that says nothing of terminals."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal, and what it shows."""

    def isatty(self):
        return True

    def screen(self):
        """Lines shown and whether the cursor is; knows what rich sends, and no other sequence."""
        lines, row, column, cursor = [[]], 0, 0, True
        for sequence, character in re.findall(r"\x1b\[([?0-9;]*[A-Za-z])|([^\x1b])", self.text):
            if character == "\n":
                row, column = row + 1, 0
                lines += [[]] * (row + 1 - len(lines))
            elif character == "\r":
                column = 0
            elif character:
                assert character.isprintable()
                line = lines[row] + [" "] * (column - len(lines[row]))
                lines[row] = [*line[:column], character, *line[column + 1 :]]
                column += 1
            elif sequence == "2K":
                lines[row] = []
            elif sequence == "1A":
                row -= 1
            elif sequence in ("?25l", "?25h"):
                cursor = sequence == "?25h"
            else:
                assert sequence.endswith("m"), sequence
        return ["".join(line).rstrip() for line in lines], cursor

    @property
    def text(self):
        return self.getvalue()


class AsciiTerminal(io.TextIOWrapper):
    """A terminal that takes ASCII alone."""

    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Makes a stream stderr; for the test to call, as pytest puts its own there before it."""

    def replace(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


class Clock:
    """Time that passes when told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "perf_counter", made)
    return made


# ---- the logger


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"quiet": False, "verbose": False}, "info\nwarning: beware\nerror: failed\n"),
        ({"quiet": True, "verbose": False}, "warning: beware\nerror: failed\n"),
        ({"quiet": False, "verbose": True}, "debug\ninfo\nwarning: beware\nerror: failed\n"),
    ],
)
def test_levels(options, shown, stderr):
    pipe = stderr(io.StringIO())
    set_up_logging(**options)
    logger.debug("debug")
    logger.info("info")
    logger.warning("be%s", "ware")
    logger.error("failed")
    assert pipe.getvalue() == shown


def test_the_second_call_replaces_the_handler(stderr):
    pipe = stderr(io.StringIO())
    set_up_logging(quiet=True, verbose=False)
    set_up_logging(quiet=False, verbose=False)
    logger.info("once")
    assert pipe.getvalue() == "once\n"


LONG = "[bold]a list[/bold] [1, 2] :smile: 'x' 0.5 http://x.y " * 5


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_lines_are_written_as_they_are(kind, stderr):
    """No markup, emoji, colours or breaks, however long the line."""
    stream = stderr(kind())
    set_up_logging(quiet=False, verbose=False)
    logger.info(LONG)
    assert stream.getvalue() == LONG + "\n"


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t")))
def test_no_control_characters_whatever_the_message(message):
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        set_up_logging(quiet=False, verbose=False)
        logger.info("%s", message)
    text = stream.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    if not re.search(r"[\x00-\x1f\x7f-\x9f]", message):
        assert text == message + "\n"


@pytest.mark.parametrize("name", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_pipe_is_a_pipe(name, monkeypatch, stderr):
    """CI systems ask for colours, not for cursor movements in their logs."""
    pipe = stderr(io.StringIO())
    monkeypatch.setenv(name, "1")
    run(Progress(set_up_logging(quiet=False, verbose=False)))
    assert "\x1b" not in pipe.getvalue()
    assert "step 2/4" in pipe.getvalue()


# ---- a training


def line(step, **more):
    return {
        "step": step, "epoch": 0.5, "loss": 0.69314, "penalty": 0.1, "lr": 0.5,
        "tokens_per_second": 9.0, **more,
    }  # fmt: skip


def run(progress, clock=None, *, total=4, log_every=2, seconds=0.5):
    """A whole training: an evaluation of a minute at the end."""
    progress.start(done=0, total=total)
    for step in range(total):
        if clock is not None:
            clock.now += seconds
        progress.step(step + 1)
        if (step + 1) % log_every == 0:
            progress.log(step + 1, line(step, budget=111))
    if clock is not None:
        clock.now += 60
    progress.evaluation(total, "validation accuracy 0.8123", best=True)
    progress.stop()


def test_lines_in_a_pipe(stderr, clock):
    pipe = stderr(io.StringIO())
    run(Progress(set_up_logging(quiet=False, verbose=False)), clock)
    assert pipe.getvalue().splitlines() == [
        "step 2/4  loss 0.6931  lr 0.5  budget 111  2 steps/s  1s left",
        "step 4/4  loss 0.6931  lr 0.5  budget 111  2 steps/s  0s left",
        "step 4/4  validation accuracy 0.8123  (best)",
    ]


def test_methods_of_fixed_rank_have_no_budget(stderr):
    pipe = stderr(io.StringIO())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=4)
    progress.log(1, line(0))
    progress.evaluation(1, "validation accuracy 0.5", best=False)
    assert "budget" not in pipe.getvalue()
    assert pipe.getvalue().endswith("\nstep 1/4  validation accuracy 0.5\n")


def test_the_bar(stderr, clock):
    terminal = stderr(Terminal())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=400)
    lines, cursor = terminal.screen()
    assert lines[0].endswith(" 0/400")
    assert not cursor
    clock.now += 5
    progress.step(50)
    progress.log(50, line(49, budget=111))
    (bar,), _ = terminal.screen()
    assert bar.endswith(" 50/400  loss 0.6931  lr 0.5  budget 111  10 steps/s  35s left")
    assert bar.startswith("━")
    logger.warning("beware")
    progress.evaluation(50, "validation accuracy 0.5", best=True)
    lines, cursor = terminal.screen()
    assert lines == ["warning: beware", "step 50/400  validation accuracy 0.5  (best)", bar]
    assert not cursor
    print("from elsewhere", file=sys.stderr)
    assert terminal.screen()[0][2:] == ["from elsewhere", bar]
    progress.stop()
    assert terminal.screen() == ([*lines[:2], "from elsewhere", bar, ""], True)
    assert sys.stderr is terminal


@pytest.mark.parametrize("width", [10, 40, 60, 80, 200])
def test_a_bar_is_one_line(width, stderr, clock, monkeypatch):
    terminal = stderr(Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    run(Progress(set_up_logging(quiet=True, verbose=False)), clock)
    assert terminal.text == ""
    run(Progress(set_up_logging(quiet=False, verbose=False)), clock)
    lines, _ = terminal.screen()
    assert lines[-1] == ""
    assert len(lines[-2]) <= width - len("^C")
    assert "4/4" in lines[-2]
    assert len(lines) == 3  # the evaluation above


def test_verbose_writes_the_log_lines_above_the_bar(stderr, clock):
    terminal = stderr(Terminal())
    run(Progress(set_up_logging(quiet=False, verbose=True)), clock)
    lines, _ = terminal.screen()
    assert lines[0].startswith("step 2/4  loss")
    assert lines[1].startswith("step 4/4  loss")
    assert lines[2].startswith("step 4/4  validation")
    assert "4/4" in lines[3]


def test_a_dumb_terminal_has_no_bar(stderr, monkeypatch):
    terminal = stderr(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    run(Progress(set_up_logging(quiet=False, verbose=False)))
    assert "\x1b" not in terminal.text
    assert "step 2/4" in terminal.text


def test_a_narrow_encoding_has_an_ascii_bar(stderr, clock):
    stream = stderr(AsciiTerminal(io.BytesIO(), encoding="ascii"))
    run(Progress(set_up_logging(quiet=False, verbose=False)), clock)
    stream.flush()
    assert b"---" in stream.buffer.getvalue()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_run_leaves_the_terminal_as_it_was(error, stderr, clock):
    terminal = stderr(Terminal())
    progress = Progress(set_up_logging(quiet=False, verbose=False))

    def fail():
        try:
            progress.start(done=0, total=400)
            progress.step(123)  # too soon to be drawn
            raise error
        finally:
            progress.stop()

    with pytest.raises(error):
        fail()
    lines, cursor = terminal.screen()
    assert cursor
    assert " 123/400" in lines[-2]
    assert lines[-1] == ""
    assert sys.stderr is terminal
    written = terminal.text
    progress.stop()
    logger.info("after")
    assert terminal.text == written + "after\n"


def test_data_goes_to_stdout_under_a_bar(stderr, capsys):
    terminal = stderr(Terminal())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=4)
    print("data")
    progress.stop()
    assert capsys.readouterr().out == "data\n"
    assert "data" not in terminal.text


def test_stopping_what_never_started(stderr):
    terminal = stderr(Terminal())
    Progress(set_up_logging(quiet=False, verbose=False)).stop()
    assert terminal.text == ""


def test_most_steps_draw_nothing(stderr, clock):
    terminal = stderr(Terminal())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=10_000)
    drawn = 0
    for step in range(1000):
        clock.now += 0.001
        before = len(terminal.text)
        progress.step(step + 1)
        drawn += len(terminal.text) > before
    progress.stop()
    assert 8 <= drawn <= 10  # one second


def test_the_reporter_that_says_nothing(capfd):
    run(Reporter())
    assert capfd.readouterr() == ("", "")


# ---- pace


def last_pace(stream):
    """Steps a second and time left, of the last line."""
    return re.search(r"([\d.]+) steps/s  (\S+) left$", stream.getvalue().splitlines()[-1]).groups()


@pytest.mark.parametrize("evaluation", [0, 1, 1000])
@pytest.mark.parametrize("seconds", [0.001, 0.5, 20])
def test_evaluations_are_not_the_steps_time_but_take_time(seconds, evaluation, stderr, clock):
    pipe = stderr(io.StringIO())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=800)
    for step in range(400):
        clock.now += seconds
        progress.step(step + 1)
        if (step + 1) % 100 == 0:
            clock.now += evaluation
            progress.evaluation(step + 1, "", best=False)
    progress.log(400, line(399))
    rate, left = last_pace(pipe)
    assert float(rate) == pytest.approx(1 / seconds, rel=0.01)
    assert left == duration(400 * seconds + 4 * evaluation)


def test_the_pace_is_the_recent_one(stderr, clock):
    """A slow start, while kernels are compiled and files are read, is forgotten."""
    pipe = stderr(io.StringIO())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=2000)
    clock.now += 300
    progress.step(1)
    for step in range(1, 1000):
        clock.now += 0.1
        progress.step(step + 1)
    progress.log(1000, line(999))
    assert last_pace(pipe) == ("10", "1m40s")


def test_a_resumed_run_counts_its_own_steps(stderr, clock):
    pipe = stderr(io.StringIO())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=900, total=1000)
    clock.now += 5
    progress.step(910)
    progress.log(910, line(909))
    assert last_pace(pipe) == ("2", "45s")


def test_no_pace_before_a_step(stderr, clock):
    pipe = stderr(io.StringIO())
    progress = Progress(set_up_logging(quiet=False, verbose=False))
    progress.start(done=900, total=1000)
    clock.now += 5
    progress.log(900, line(899))
    assert pipe.getvalue() == "step 900/1000  loss 0.6931  lr 0.5\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (130, "2m10s"), (3599.7, "1h00m"),
        (11_100, "3h05m"), (360_000, "100h00m"),
    ],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


# ---- the closing table


def record(step, **splits):
    return {"step": step, "epoch": 1.0, "metrics": splits, "value": 0.5}


RESULT = {
    "best": record(299, validation={"accuracy": 0.75, "f1": 0.8}),
    "best_at_budget": record(349, validation={"accuracy": 0.625, "f1": 0.7}),
    "last": record(99_999, validation={"accuracy": 0.5, "f1": 1.0}),
    "selecting": "accuracy", "task": "mrpc", "outputs": 2, "steps": 100_000, "seconds": 130.2,
    "train_seconds": 100.0, "steps_per_second": 12.345, "trainable_parameters": 1_327_104,
    "kept_parameters": 664_000, "ranks": {"0.query": 2}, "peak_memory_bytes": 680_000_000,
}  # fmt: skip
MATRIX = MatrixReport(
    name="0.query", layer=0, kind="W_q", in_features=8, out_features=4, init_rank=3, rank=2,
    kept=(True, False, True), scores=None,
)  # fmt: skip
REPORT = RankReport(step=9, budget=2, criterion="snr", matrices=(MATRIX,))


def closing(result=RESULT, report=REPORT, **options):
    stream = io.StringIO()
    closing_table(result, report, Console(file=stream, width=80, **options))
    return stream.getvalue()


def test_the_closing_table():
    assert closing() == (
        "                  step  accuracy      f1\n"
        "best               300    0.7500  0.8000\n"
        "best_at_budget     350    0.6250  0.7000\n"
        "last            100000    0.5000  1.0000\n"
        "\n"
        "best by               accuracy on validation\n"
        "trainable parameters  1,327,104\n"
        "kept parameters       664,000\n"
        "training time         1m40s, with evaluations 2m10s\n"
        "steps a second        12.3\n"
        "peak memory           0.68 GB\n"
        "\n"
        "layer  0    sum\n"
        "W_q    2█     2\n"
        "sum    2      2\n"
        "\n"
        "rank  0 ░▒▓█ 2\n"
        "2 of 3 triplets kept (67%), mean rank 2.00 of 1 matrices\n"
    )


def test_two_splits_side_by_side():
    splits = ("validation_matched", "validation_mismatched")
    at = {
        name: record(9, **{split: {"accuracy": 0.25 * (i + 1)} for i, split in enumerate(splits)})
        for name in ("best", "best_at_budget", "last")
    }
    lines = closing(RESULT | at).splitlines()
    assert lines[0].split("  ")[-2:] == ["matched accuracy", "mismatched accuracy"]
    assert [x.split() for x in lines[1:4]] == [
        [name, "10", "0.2500", "0.5000"] for name in ("best", "best_at_budget", "last")
    ]
    assert "accuracy on validation_matched" in lines[5]
    assert max(map(len, lines)) <= 80


def test_what_gates_have_come_to():
    cost = {"adapter_relative": 0.0312, "with_base_relative": 0.97, "storage_bytes": 12_345,
            "storage_relative": 0.25}  # fmt: skip
    lines = closing(RESULT | {"cost": cost, "mean_rank": 2.5, "mean_bits": 4.25}).splitlines()
    assert "ranks and widths      mean rank 2.50, mean width 4.25 bits" in lines
    wanted = "bit operations        3.12% of 32 x 32 at the first rank, with the base 97.00%"
    assert wanted in lines
    assert "adapters' storage     12,345 bytes, 25.00%" in lines
    assert max(map(len, lines)) <= 80


def test_only_methods_that_allocate_have_a_heatmap():
    fixed = RankReport(step=9, budget=2, criterion=None, matrices=(MATRIX,))
    assert closing(report=None) == closing(report=fixed)
    assert closing().startswith(closing(report=None))
    assert "layer" not in closing(report=None)


def test_no_memory_is_known_on_a_cpu():
    assert "memory" not in closing(RESULT | {"peak_memory_bytes": None})


def test_the_posterior_and_its_note():
    """On a line, and the note wrapped, before the heatmap; nothing for a point estimate."""
    summary = {
        "hessian_over_h0": {"q05": 0.66297, "median": 0.96, "q95": 1.64015},
        "sigma_ratio": 1.5729,
        "snr_magnitude_correlation": None,
        "note": None,
    }
    line = re.search("^posterior .*", closing(RESULT | {"posterior": summary}), re.M)[0]
    assert line.split("  ")[-1].strip() == "h/h0 0.663 to 1.64, sigma 95%/5% 1.57"
    with_order = summary | {"snr_magnitude_correlation": 0.7388}
    assert "1.57, snr against magnitude 0.739\n" in closing(RESULT | {"posterior": with_order})
    note = " ".join(["sigma is almost constant:"] * 9)
    text = closing(RESULT | {"posterior": summary | {"note": note}})
    before, _, after = text.partition("\n\nnote: ")
    assert before.endswith(line)
    written, _, heatmap = after.partition("\n\n")
    assert written.replace("\n", " ") == note
    assert max(map(len, text.splitlines())) <= 80
    assert closing().endswith(heatmap)
    assert closing(RESULT | {"posterior": None}) == closing()


def test_side_by_side():
    result = {
        "metrics": {"validation": {"accuracy": 0.5, "nll": 1.25}},
        "sampled": {"validation": {"accuracy": 0.625, "nll": 1.0}},
        "samples": 16,
        "ood": {
            "source": "sst2",
            "rows": 9,
            "mean": {"validation": {"entropy": 0.75}},
            "sampled": {"validation": {"entropy": 0.7, "mutual_information": 1.0}},
        },
    }
    assert side_by_side(result).splitlines() == [
        "                            mean  16 samples",
        "validation",
        "  accuracy                0.5000      0.6250",
        "  nll                     1.2500      1.0000",
        "AUROC, sst2 against validation",
        "  entropy                 0.7500      0.7000",
        "  mutual_information           -      1.0000",
    ]
    at_mean = {"metrics": {}, "ood": {k: v for k, v in result["ood"].items() if k != "sampled"}}
    assert side_by_side(at_mean).splitlines() == [
        "                 mean",
        "AUROC, sst2 against validation",
        "  entropy      0.7500",
    ]


def test_colours_on_a_terminal_alone():
    assert "\x1b" not in closing()
    assert "\x1b" in closing(force_terminal=True, color_system="256")
    plain = closing(force_terminal=True, color_system="256", _environ={"NO_COLOR": "1"})
    assert plain == closing()


def test_importing_it_costs_nothing():
    """`bayeslora --help` prints at once: rich is for those who show something."""
    program = "import sys, bayeslora_cli.cli.progress; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
