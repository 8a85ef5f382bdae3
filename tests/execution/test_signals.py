"""Signals: noted inside the loop, obeyed elsewhere, and nobody else's business."""

from __future__ import annotations

import os
import signal

import pytest

from bayeslora_cli.errors import Preempted
from bayeslora_cli.execution.signals import SIGNALS, Stop, Stopped, deferred, listening


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """A job in a shell's background ignores SIGINT, one under nohup SIGHUP; and every test leaves
    what it found."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    there = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == there
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_the_loop_it_is_obeyed_at_once(number):
    reached = []

    def work():
        with listening():
            send(number)
            reached.append(1)

    with pytest.raises(Preempted, match=f"stopped by {number.name}.*same command again") as caught:
        work()
    assert caught.value.exit_code == 75
    assert not reached


@pytest.mark.parametrize("number", SIGNALS)
def test_inside_of_it_it_is_noted(number):
    done = []

    def work():
        with listening() as stop:
            with stop.noted():
                stop.check()
                send(number)
                send(signal.SIGTERM)  # schedulers send several
                done.append("the step")
            done.append("no more")

    with pytest.raises(Preempted, match=number.name):
        work()
    assert done == ["the step"]


def test_it_is_found_where_the_loop_looks():
    def work():
        with listening() as stop, stop.noted():
            send(signal.SIGUSR1)
            try:
                stop.check()
            except Stopped as found:
                raise Preempted(f"saved after {found}") from None

    with pytest.raises(Preempted, match="saved after SIGUSR1"):
        work()


def test_a_library_that_catches_everything_does_not_swallow_it():
    def work():
        with listening() as stop:
            try:
                send(signal.SIGTERM)
            except Exception:
                pytest.fail("an Exception")
            except BaseException:  # even so
                stop.check()

    with pytest.raises(Preempted):
        work()


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_interrupt_leaves_at_once(first):
    def work():
        with listening() as stop, stop.noted():
            send(first)
            send(signal.SIGINT)
            if first != signal.SIGINT:
                send(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 130


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with listening() as stop:
            send(signal.SIGUSR1)
            stop.check()
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_without_listening_nothing_is_changed():
    stop = Stop()
    with stop.noted():
        stop.check()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_what_is_deferred_happens_at_the_end():
    done = []

    def block():
        with deferred():
            signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["whole"]


def test_a_second_one_is_not_deferred():
    done = []

    def block():
        with deferred():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("never")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == []
