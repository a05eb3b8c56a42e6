"""Listeners of requests: on their own thread, in order, and no burden for anybody."""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable

import pytest

from etcd_core import telemetry
from etcd_core.errors import RequestTimeout
from etcd_core.telemetry import CallFinished, CallRetried, OpenCall
from etcd_core.testing import eventually

Event = telemetry.TelemetryEvent


def finish(method: str = "KV/Range") -> None:
    with OpenCall(method):
        pass


def test_nobody_listens() -> None:
    assert not telemetry.heard()
    assert telemetry.flush(0.0)


def test_events_come_in_order_on_a_thread_of_their_own() -> None:
    seen: list[Event] = []
    threads: set[str] = set()

    def listener(event: Event) -> None:
        threads.add(threading.current_thread().name)
        seen.append(event)

    with telemetry.observe(listener) as observation:
        assert telemetry.heard()
        with OpenCall("KV/Txn") as call:
            call.retried("ambiguous")
        finish("KV/Range")
        assert telemetry.flush(10)
    assert observation.cancelled
    assert threads == {"etcd-telemetry"}
    retried, first, second = seen
    assert retried == CallRetried("KV/Txn", "ambiguous")
    assert isinstance(first, CallFinished)
    assert (first.method, first.outcome, first.attempts) == ("KV/Txn", "ok", 2)
    assert isinstance(second, CallFinished)
    assert (second.method, second.attempts) == ("KV/Range", 1)
    assert 0.0 <= second.seconds < 5.0


def test_outcomes() -> None:
    outcomes: list[str] = []

    def listener(event: Event) -> None:
        assert isinstance(event, CallFinished)
        outcomes.append(event.outcome)

    with telemetry.observe(listener):
        with pytest.raises(RequestTimeout), OpenCall("KV/Put"):
            raise RequestTimeout("late")
        with pytest.raises(KeyboardInterrupt), OpenCall("KV/Put"):
            raise KeyboardInterrupt
        call = OpenCall("KV/Put")
        call.failed(RequestTimeout("late"))
        with pytest.raises(RuntimeError), call:
            raise RuntimeError
        assert telemetry.flush(10)
    assert outcomes == ["RequestTimeout", "interrupted", "RequestTimeout"]


def test_a_listener_that_fails_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []

    def bad(event: Event) -> None:
        raise ValueError("mine")

    with telemetry.observe(bad), telemetry.observe(seen.append):
        finish()
        finish()
        assert telemetry.flush(10)
    assert len(seen) == 2
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.etcd_event == "telemetry.failed"  # type: ignore[attr-defined]


def test_a_listener_that_blocks_holds_up_no_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_BACKLOG", 20)
    go_on = threading.Event()
    seen: list[Event] = []

    def slow(event: Event) -> None:
        seen.append(event)
        go_on.wait(30)

    with telemetry.observe(slow):
        for _ in range(100):
            finish()
        assert not telemetry.flush(0.05)
        go_on.set()
        eventually(lambda: telemetry.flush(1))
    assert 20 <= len(seen) <= 22
    (record,) = caplog.records
    assert record.etcd_event == "telemetry.behind"  # type: ignore[attr-defined]


def test_none_is_called_after_cancel_returned() -> None:
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def listener(event: Event) -> None:
        inside.set()
        go_on.wait(30)
        done.set()

    observation = telemetry.observe(listener)
    finish()
    finish()
    assert inside.wait(10)
    canceller = threading.Thread(target=observation.cancel)
    canceller.start()
    go_on.set()
    canceller.join(10)
    assert done.is_set()
    done.clear()
    finish()
    telemetry.flush(1)
    assert not done.is_set()


def test_a_listener_may_cancel_itself() -> None:
    seen: list[Event] = []

    def once(event: Event) -> None:
        seen.append(event)
        observation.cancel()

    observation = telemetry.observe(once)
    finish()
    finish()
    assert telemetry.flush(10)
    eventually(lambda: len(seen) == 1)


def test_the_thread_ends_with_the_last_listener() -> None:
    with telemetry.observe(lambda event: None):
        finish()
        assert telemetry.flush(10)
        assert threads() == 1
    eventually(lambda: threads() == 0)


def test_many_threads() -> None:
    counted = []

    def work() -> None:
        for _ in range(200):
            finish()

    with telemetry.observe(counted.append):
        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert telemetry.flush(10)
    assert len(counted) == 1600


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork() -> None:
    seen: list[Event] = []
    with telemetry.observe(seen.append):
        finish()
        assert telemetry.flush(10)
        # Without the thread there is nothing that a child could inherit half done.
        told = in_child(lambda: (threads(), len(seen), finish(), telemetry.flush(10), len(seen)))
        assert told == "(0, 1, None, True, 2)"
        assert len(seen) == 1
        finish()
        assert telemetry.flush(10)
        assert len(seen) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_does_not_wait_for_a_listener_that_blocks_and_loses_nothing() -> None:
    inside, go_on = threading.Event(), threading.Event()
    seen: list[Event] = []

    def slow(event: Event) -> None:
        inside.set()
        go_on.wait(30)
        seen.append(event)

    with telemetry.observe(slow):
        finish()
        finish()
        assert inside.wait(10)
        assert in_child(lambda: "here") == "here"
        go_on.set()
        eventually(lambda: len(seen) == 2)


def threads() -> int:
    return sum(thread.name == "etcd-telemetry" for thread in threading.enumerate())


def in_child(action: Callable[[], object]) -> str:
    """Fork, and return what ``action`` gave in the child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(action()).encode())
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return told
