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

from bayeslora_cli.cli.progress import ProgressBar, set_up_logging
from bayeslora_cli.config.values import duration

logger = logging.getLogger("bayeslora")


pytestmark = pytest.mark.usefixtures("quiet_machine")


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
    monkeypatch.setattr("bayeslora_cli.cli.progress.perf_counter", made)
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


# no blank at its end: rich before 14.3 drops it from a long line
LONG = ("[bold]a list[/bold] [1, 2] :smile: 'x' 0.5 http://x.y " * 5).strip()


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
    run(ProgressBar(set_up_logging(quiet=False, verbose=False)))
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
    run(ProgressBar(set_up_logging(quiet=False, verbose=False)), clock)
    assert pipe.getvalue().splitlines() == [
        "step 2/4  loss 0.6931  lr 0.5  budget 111  2 steps/s  1s left",
        "step 4/4  loss 0.6931  lr 0.5  budget 111  2 steps/s  0s left",
        "step 4/4  validation accuracy 0.8123  (best)",
    ]


def test_methods_of_fixed_rank_have_no_budget(stderr):
    pipe = stderr(io.StringIO())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=4)
    progress.log(1, line(0))
    progress.evaluation(1, "validation accuracy 0.5", best=False)
    assert "budget" not in pipe.getvalue()
    assert pipe.getvalue().endswith("\nstep 1/4  validation accuracy 0.5\n")


def test_the_bar(stderr, clock):
    terminal = stderr(Terminal())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
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
    run(ProgressBar(set_up_logging(quiet=True, verbose=False)), clock)
    assert terminal.text == ""
    run(ProgressBar(set_up_logging(quiet=False, verbose=False)), clock)
    lines, _ = terminal.screen()
    assert lines[-1] == ""
    assert len(lines[-2]) <= width - len("^C")
    assert "4/4" in lines[-2]
    assert len(lines) == 3  # the evaluation above


def test_verbose_writes_the_log_lines_above_the_bar(stderr, clock):
    terminal = stderr(Terminal())
    run(ProgressBar(set_up_logging(quiet=False, verbose=True)), clock)
    lines, _ = terminal.screen()
    assert lines[0].startswith("step 2/4  loss")
    assert lines[1].startswith("step 4/4  loss")
    assert lines[2].startswith("step 4/4  validation")
    assert "4/4" in lines[3]


def test_a_dumb_terminal_has_no_bar(stderr, monkeypatch):
    terminal = stderr(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    run(ProgressBar(set_up_logging(quiet=False, verbose=False)))
    assert "\x1b" not in terminal.text
    assert "step 2/4" in terminal.text


def test_a_narrow_encoding_has_an_ascii_bar(stderr, clock):
    stream = stderr(AsciiTerminal(io.BytesIO(), encoding="ascii"))
    run(ProgressBar(set_up_logging(quiet=False, verbose=False)), clock)
    stream.flush()
    assert b"---" in stream.buffer.getvalue()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_run_leaves_the_terminal_as_it_was(error, stderr, clock):
    terminal = stderr(Terminal())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))

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
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=4)
    print("data")
    progress.stop()
    assert capsys.readouterr().out == "data\n"
    assert "data" not in terminal.text


def test_stopping_what_never_started(stderr):
    terminal = stderr(Terminal())
    ProgressBar(set_up_logging(quiet=False, verbose=False)).stop()
    assert terminal.text == ""


def test_most_steps_draw_nothing(stderr, clock):
    terminal = stderr(Terminal())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
    progress.start(done=0, total=10_000)
    drawn = 0
    for step in range(1000):
        clock.now += 0.001
        before = len(terminal.text)
        progress.step(step + 1)
        drawn += len(terminal.text) > before
    progress.stop()
    assert 8 <= drawn <= 10  # one second


# ---- pace


def last_pace(stream):
    """Steps per second and time left, of the last line."""
    return re.search(r"([\d.]+) steps/s  (\S+) left$", stream.getvalue().splitlines()[-1]).groups()


@pytest.mark.parametrize("evaluation", [0, 1, 1000])
@pytest.mark.parametrize("seconds", [0.001, 0.5, 20])
def test_evaluations_are_not_the_steps_time_but_take_time(seconds, evaluation, stderr, clock):
    pipe = stderr(io.StringIO())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
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
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
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
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
    progress.start(done=900, total=1000)
    clock.now += 5
    progress.step(910)
    progress.log(910, line(909))
    assert last_pace(pipe) == ("2", "45s")


def test_no_pace_before_a_step(stderr, clock):
    pipe = stderr(io.StringIO())
    progress = ProgressBar(set_up_logging(quiet=False, verbose=False))
    progress.start(done=900, total=1000)
    clock.now += 5
    progress.log(900, line(899))
    assert pipe.getvalue() == "step 900/1000  loss 0.6931  lr 0.5\n"


def test_importing_it_costs_nothing():
    """`bayeslora --help` prints at once: rich is for those who show something."""
    program = "import sys, bayeslora_cli.cli.progress; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
