"""The way of a lock from a release to the next owner's ``lock()``, as a whole and by its parts.

Main thread releases, ``etcd-bench-waiter`` waits; each has a client of its own.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etcd_core import Client, Lock
from etcd_core.config import UNSET, Timeout
from etcd_core.contender import Contender
from etcd_core.wire import messages as pb

from .core_rows import Bench
from .measure import Row, compare, per_operation, seconds, show_requests
from .stub import Stub

_KEY = "/bench/floor/handover"
_NAME = "handover"
_WAITER = "etcd-bench-waiter"


def handover(bench: Bench) -> list[Row]:
    """Return the row of a hand-over."""
    row = Row("lock handed over", "raw delete -> event -> one read txn", "1 read; <= 2.5x")
    times = max(20, bench.effort.iterations // 4)
    with (
        bench.client() as client,
        bench.counted() as (waiting, counter),
        bench.stub() as stub,
        bench.stub() as writer,
        _Relay(client, waiting) as relay,
    ):
        compare(
            row,
            lambda: _floor(stub, writer, times),
            lambda: [relay.turn() for _ in range(times)],
            bench.effort.rounds,
            2.5,
        )
        with _parts() as parts:
            for _ in range(times):
                relay.turn()
        row.notes.append(
            "of that "
            + ", ".join(f"{seconds(statistics.median(part))} {name}" for name, part in parts())
        )
        requests = per_operation(counter, relay.turn, times)
    row.requests = f"{show_requests(requests)}, for joining, waiting and leaving"
    # Joining, the proof after the wait, the release.
    row.check(requests["Txn"] <= 3.05)
    return [row]


def _floor(stub: Stub, writer: Stub, times: int) -> list[float]:
    arrived = threading.Event()
    both = [pb.RequestOp(request_range=pb.RangeRequest(key=_KEY.encode())) for _ in "ab"]
    taken = []
    stop = stub.watch(_KEY, lambda response: arrived.set())
    try:
        for _ in range(times):
            writer.set(_KEY)
            assert arrived.wait(10)
            arrived.clear()
            begins = time.perf_counter()
            writer.clear(_KEY)
            assert arrived.wait(10)
            arrived.clear()
            stub.txn(pb.TxnRequest(success=both))
            taken.append(time.perf_counter() - begins)
    finally:
        stop()
    return taken


class _Relay:
    """A holder, and a thread that waits behind it each time it is told to."""

    def __init__(self, client: Client, waiting: Client) -> None:
        self._client = client
        self._waiting = waiting
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._taken: queue.SimpleQueue[tuple[float, Lock]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._wait, name=_WAITER)

    def __enter__(self) -> _Relay:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._orders.put(False)
        self._thread.join(30)

    def _wait(self) -> None:
        while self._orders.get():
            lock = self._waiting.lock(_NAME, timeout=30)
            self._taken.put((time.perf_counter(), lock))

    def turn(self) -> float:
        """Hand over once; return the seconds from the start of the release."""
        lock = self._client.lock(_NAME, timeout=30)
        watched = self._waiting.scope().engine.hub.count
        self._orders.put(True)
        # Its own key and ours: then it waits, and a moment later so does etcd.
        deadline = time.perf_counter() + 30
        while self._waiting.scope().engine.hub.count < watched + 2:
            assert time.perf_counter() < deadline
            time.sleep(0.0005)
        time.sleep(0.003)
        begins = time.perf_counter()
        lock.unlock()
        taken, held = self._taken.get(timeout=30)
        held.unlock()
        return taken - begins


@contextmanager
def _parts() -> Iterator[Callable[[], list[tuple[str, list[float]]]]]:
    """Time the waiter's steps while the block runs."""
    proof: list[float] = []
    rest: list[float] = []
    ended = [0.0]
    look, own = Contender._look, Contender.own

    def timed_look(self: Contender, timeout: Timeout = UNSET) -> None:
        begins = time.perf_counter()
        look(self, timeout)
        ended[0] = time.perf_counter()
        proof.append(ended[0] - begins)

    def timed_own(self: Contender) -> object:
        try:
            return own(self)
        finally:
            # The holder takes a free lock, without a look.
            if threading.current_thread().name == _WAITER:
                rest.append(time.perf_counter() - ended[0])

    Contender._look = timed_look  # type: ignore[method-assign]
    Contender.own = timed_own  # type: ignore[assignment, method-assign]
    try:
        yield lambda: [("for the proof", proof), ("from there to the ownership", rest)]
    finally:
        Contender._look = look  # type: ignore[method-assign]
        Contender.own = own  # type: ignore[method-assign]
