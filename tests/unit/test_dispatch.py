"""The dispatcher: order and no overlap in a strand, no waiting between strands, safe ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from etcd_core import dispatch
from etcd_core.dispatch import Dispatcher, Subscription
from etcd_core.testing import eventually


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    dispatcher = Dispatcher()
    yield dispatcher
    dispatcher.stop(5.0)
    assert not [t for t in threading.enumerate() if t.name.startswith("etcd-dispatch")]


def test_nothing_runs_before_the_first_post(dispatcher: Dispatcher) -> None:
    dispatcher.strand("idle")
    assert not [t for t in threading.enumerate() if t.name.startswith("etcd-dispatch")]


def test_order_and_no_overlap(dispatcher: Dispatcher) -> None:
    strand = dispatcher.strand("one")
    seen: list[int] = []
    busy = threading.Lock()
    overlaps: list[int] = []

    def note(number: int) -> None:
        if not busy.acquire(blocking=False):
            overlaps.append(number)
            return
        try:
            time.sleep(0)
            seen.append(number)
        finally:
            busy.release()

    for number in range(2000):
        assert strand.post(lambda number=number: note(number))
    eventually(lambda: len(seen) + len(overlaps) == 2000)
    assert overlaps == []
    assert seen == list(range(2000))


def test_order_with_many_posters(dispatcher: Dispatcher) -> None:
    strands = [dispatcher.strand(f"s{n}") for n in range(8)]
    seen: dict[int, list[int]] = {n: [] for n in range(8)}

    def fill(index: int) -> None:
        for number in range(300):
            strands[index].post(lambda number=number: seen[index].append(number))

    threads = [threading.Thread(target=fill, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: all(len(numbers) == 300 for numbers in seen.values()))
    assert all(numbers == list(range(300)) for numbers in seen.values())


def test_a_blocked_strand_stalls_no_other(dispatcher: Dispatcher) -> None:
    release = threading.Event()
    started = [threading.Event() for _ in range(3)]
    for event in started:
        strand = dispatcher.strand("blocked")
        strand.post(lambda event=event: (event.set(), release.wait(20)))
    assert all(event.wait(10) for event in started)
    done = threading.Event()
    dispatcher.strand("free").post(done.set)
    assert done.wait(10)
    release.set()


def test_close_waits_for_the_running_callback_and_drops_the_rest(dispatcher: Dispatcher) -> None:
    strand = dispatcher.strand("one")
    running, release, ran = threading.Event(), threading.Event(), []
    strand.post(lambda: (running.set(), release.wait(20), ran.append("first")))
    strand.post(lambda: ran.append("second"))
    assert running.wait(10)
    assert strand.close(0.05) is False
    release.set()
    assert strand.close(10) is True
    assert ran == ["first"]
    assert strand.post(lambda: ran.append("third")) is False
    assert strand.backlog == 0


def test_close_from_inside_returns_at_once(dispatcher: Dispatcher) -> None:
    strand = dispatcher.strand("one")
    result: list[bool] = []
    ran: list[str] = []
    strand.post(lambda: result.append(strand.close()))
    strand.post(lambda: ran.append("after"))
    eventually(lambda: result)
    assert result == [True]
    assert strand.close(10)
    assert ran == []


def test_two_strands_that_close_each_other_do_not_deadlock(dispatcher: Dispatcher) -> None:
    for _ in range(50):
        left, right = dispatcher.strand("left"), dispatcher.strand("right")
        both = threading.Barrier(2)
        done: list[bool] = []

        def end(other: dispatch.Strand, both: threading.Barrier, done: list[bool]) -> None:
            both.wait(10)
            done.append(other.close(20))

        left.post(lambda r=right, b=both, d=done: end(r, b, d))
        right.post(lambda s=left, b=both, d=done: end(s, b, d))
        eventually(lambda done=done: len(done) == 2, 10)


def test_three_strands_in_a_ring_do_not_deadlock(dispatcher: Dispatcher) -> None:
    strands = [dispatcher.strand(f"ring {n}") for n in range(3)]
    together = threading.Barrier(3)
    done: list[bool] = []

    def end(other: dispatch.Strand) -> None:
        together.wait(10)
        done.append(other.close(20))

    for number, strand in enumerate(strands):
        strand.post(lambda number=number: end(strands[(number + 1) % 3]))
    eventually(lambda: len(done) == 3, 10)


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_error_is_logged_and_stops_nothing(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    strand = dispatcher.strand("watch 'jobs'")
    done = threading.Event()

    def fail() -> None:
        raise error("on purpose")

    with caplog.at_level(logging.ERROR, "etcd_core.dispatch"):
        strand.post(fail)
        strand.post(done.set)
        assert done.wait(10)
    assert [r.message for r in caplog.records] == ["watch 'jobs': a callback failed"]
    assert "on purpose" in caplog.text


def test_a_backlog_is_warned_of_once(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_BACKLOG_WARNING", 5)
    strand = dispatcher.strand("slow")
    release = threading.Event()
    with caplog.at_level(logging.WARNING, "etcd_core.dispatch"):
        for _ in range(20):
            strand.post(lambda: release.wait(20))
    release.set()
    assert len(caplog.records) == 1
    assert "slow" in caplog.text


def test_idle_workers_end_and_come_back(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_IDLE_SECONDS", 0.05)
    strand = dispatcher.strand("one")
    for _ in range(3):
        done = threading.Event()
        strand.post(done.set)
        assert done.wait(10)
        eventually(lambda: not dispatcher._threads)


def test_no_callback_is_lost_while_workers_go_idle(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_IDLE_SECONDS", 0.0005)
    strand = dispatcher.strand("one")
    for _ in range(300):
        done = threading.Event()
        strand.post(done.set)
        assert done.wait(10)
        time.sleep(0.0005)


def test_stop_from_a_callback_and_post_after_stop(dispatcher: Dispatcher) -> None:
    strand = dispatcher.strand("one")
    stopped = threading.Event()
    strand.post(lambda: (dispatcher.stop(5.0), stopped.set()))
    assert stopped.wait(10)
    assert strand.post(lambda: None) is False


def test_subscription_ends_once(dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture) -> None:
    strand = dispatcher.strand("watch 'jobs'")
    stops: list[int] = []
    with Subscription(strand, lambda: stops.append(1)) as subscription:
        assert not subscription.cancelled
    subscription()
    subscription.cancel()
    assert subscription.cancelled
    assert stops == [1]
    assert caplog.records == []


def test_subscription_says_when_its_handler_stays(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    strand = dispatcher.strand("watch 'jobs'")
    running, release = threading.Event(), threading.Event()
    strand.post(lambda: (running.set(), release.wait(20)))
    assert running.wait(10)
    with caplog.at_level(logging.WARNING, "etcd_core.dispatch"):
        Subscription(strand, lambda: None).cancel(timeout=0.05)
    release.set()
    assert "still runs" in caplog.text
