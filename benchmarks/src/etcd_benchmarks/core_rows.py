"""The rows of etcd_core: locks, registration, watches, configuration, reads.

Each function takes a :class:`Bench` and returns its rows. Main thread, and the library's own.
"""

from __future__ import annotations

import statistics
import threading
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import yaml

from etcd_core import Client, Config, Descriptor
from etcd_core.testing import RpcCounter
from etcd_core.wire import messages as pb

from .measure import (
    Effort,
    Row,
    compare,
    compare_calls,
    per_operation,
    percentile,
    seconds,
    show_requests,
    timed,
)
from .stub import Stub

_PREFIX = "/bench"
_READS_LIMIT = 3e-6
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Bench:
    """Where to measure, and how much."""

    endpoint: str
    effort: Effort

    @contextmanager
    def client(self, **options: object) -> Iterator[Client]:
        """Give a client, closed at the end."""
        config = Config([self.endpoint], prefix=_PREFIX, **options)  # type: ignore[arg-type]
        with Client(config) as client:
            yield client

    @contextmanager
    def counted(self) -> Iterator[tuple[Client, RpcCounter]]:
        """Give a client whose requests are counted."""
        counter = RpcCounter()
        config = Config([self.endpoint], prefix=_PREFIX)
        with Client(config, interceptors=[counter]) as client:
            yield client, counter

    def stub(self) -> Stub:
        """Return a bare stub."""
        return Stub(self.endpoint)


def locks(bench: Bench) -> list[Row]:
    """Return lock + unlock and a failed try_lock."""
    return [_lock_cycle(bench), _failed_try(bench)]


def _lock_cycle(bench: Bench) -> Row:
    row = Row("lock + unlock, free, warm", "2 raw stub writes", "2 requests; <= 1.4x")
    times = bench.effort.iterations
    with bench.client() as client, bench.stub() as stub:

        def floor() -> None:
            stub.set("/bench/floor/lock")
            stub.set("/bench/floor/lock")

        def ours() -> None:
            client.lock("free").unlock()

        def same() -> None:
            _bare_lock_cycle(stub, lease)

        lease = stub.grant(pb.LeaseGrantRequest(TTL=60)).ID
        twin = compare_calls(Row(""), same, ours, bench.effort)
        compare_calls(row, floor, ours, bench.effort, 1.4)
    row.notes.append(f"{twin.ratio:.2f}x the same two transactions on the bare stub")
    with bench.counted() as (client, counter):
        client.lock("free").unlock()
        requests = per_operation(counter, lambda: client.lock("free").unlock(), times)
    row.requests = show_requests(requests)
    row.check(requests.get("Txn") == 2 and sum(requests.values()) <= 2.05)
    return row


def _bare_lock_cycle(stub: Stub, lease: int) -> None:
    """Send what the library sends for a free lock, and do nothing else."""
    key = b"/bench/floor/same/1"
    absent = pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=0
    )
    newest = pb.RangeRequest(
        key=b"/bench/floor/same/",
        range_end=b"/bench/floor/same0",
        limit=2,
        sort_order=pb.RangeRequest.DESCEND,
        sort_target=pb.RangeRequest.CREATE,
        keys_only=True,
    )
    put = pb.RequestOp(request_put=pb.PutRequest(key=key, lease=lease))
    answer = stub.txn(
        pb.TxnRequest(
            compare=[absent],
            success=[put, pb.RequestOp(request_range=newest)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))],
        )
    )
    ours = pb.Compare(
        result=pb.Compare.EQUAL,
        target=pb.Compare.CREATE,
        key=key,
        create_revision=answer.header.revision,
    )
    gone = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    stub.txn(pb.TxnRequest(compare=[ours], success=[gone]))


def _failed_try(bench: Bench) -> Row:
    row = Row("failed try_lock", "1 raw stub txn", "1 request, no revision")
    times = bench.effort.iterations
    with bench.client() as holder, bench.client() as client, bench.stub() as stub:
        lock = holder.lock("taken")
        key = lock.etcd_key.encode()
        absent = pb.Compare(
            result=pb.Compare.EQUAL, target=pb.Compare.CREATE, key=key, create_revision=0
        )
        request = pb.TxnRequest(
            compare=[absent], failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key))]
        )
        compare_calls(
            row, lambda: stub.txn(request), lambda: client.try_lock("taken"), bench.effort
        )
        before = stub.read("/bench/").header.revision
        with bench.counted() as (counting, counter):
            counting.try_lock("taken")
            grown = stub.read("/bench/").header.revision - before
            requests = per_operation(counter, lambda: counting.try_lock("taken"), times)
        row.requests = f"{show_requests(requests)}; {grown} revisions"
        row.check(requests.get("Txn") == 1 and sum(requests.values()) <= 1.05 and grown == 0)
        lock.unlock()
    return row


def registration(bench: Bench) -> list[Row]:
    """Return register + deregister, and a thousand registrations."""
    return [_register_cycle(bench), _many_registrations(bench)]


def _register_cycle(bench: Bench) -> Row:
    row = Row("register + deregister, warm", "1 + 1 raw writes", "counted: 1 + 1")
    times = bench.effort.iterations
    me = Descriptor(name="cycle", id="c-1", address="127.0.0.1:80")
    with bench.client() as client, bench.stub() as stub:

        def floor() -> None:
            stub.set("/bench/floor/registration")
            stub.set("/bench/floor/registration")

        compare_calls(row, floor, lambda: client.register(me).deregister(), bench.effort)
    with bench.counted() as (client, counter):
        client.register(me).deregister()
        counted = per_operation(counter, lambda: client.register(me).deregister(), times)
    requests = dict(counted)
    # Messages on the watch stream that is open anyway are no requests: the key's own watch begins
    # and ends with the registration.
    messages = requests.pop("Watch", 0.0)
    row.requests = show_requests(requests)
    row.notes.append(f"and {messages:g} messages on the open watch stream")
    row.check(sum(requests.values()) <= 2.1)
    return row


def _many_registrations(bench: Bench, count: int = 1000) -> Row:
    row = Row("1 000 registrations in one process", "one stream", "1 keep-alive stream")
    process = psutil.Process()
    with bench.counted() as (client, counter):
        resident = process.memory_info().rss
        begins = time.perf_counter()
        for number in range(count):
            client.register(
                Descriptor(name="many", id=f"m-{number}", address=f"127.0.0.1:{number + 1}"), ttl=15
            )
        row.ours = (time.perf_counter() - begins) / count
        grown = process.memory_info().rss - resident
        before = counter.counts.get("LeaseKeepAlive", 0)
        share = _busy(process, 6.0)
        sent = counter.counts.get("LeaseKeepAlive", 0) - before
        streams = counter.streams.get("LeaseKeepAlive", 0)
    row.requests = f"{streams} stream, {sent / 6.0:.0f} renewals/s"
    row.notes.append(f"{grown / count / 1024:.1f} KiB each, {share:.1%} of one core while idle")
    row.check(streams == 1)
    return row


def _busy(process: psutil.Process, for_seconds: float) -> float:
    before = process.cpu_times()
    time.sleep(for_seconds)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system) / for_seconds


def watches(bench: Bench) -> list[Row]:
    """Return how late a change of the configuration is known."""
    row = Row("change -> on_change called, 100 leaves", "raw watch stub callback", "p50 <= 1.5x")
    times = max(20, bench.effort.iterations // 2)
    with bench.client() as client, bench.stub() as stub, bench.stub() as writer:
        source = client.config_source("live")
        source.save({f"table.leaf{i}": i for i in range(100)})
        key = "/bench/config/live/table.leaf7"

        def floor() -> list[float]:
            arrivals = _Arrivals()
            stop = stub.watch("/bench/config/live/", lambda response: arrivals.note())
            try:
                return arrivals.latencies(writer, key, times)
            finally:
                stop()

        def ours() -> list[float]:
            arrivals = _Arrivals()
            with source.watch(lambda snapshot: arrivals.note()):
                arrivals.forget_first()
                return arrivals.latencies(writer, key, times)

        compare(row, floor, ours, bench.effort.rounds, 1.5)
        tail = ours()
    row.notes.append(f"p99 {seconds(percentile(tail, 0.99))}; one hop after the stream's thread")
    row.requests = "none"
    return [row]


class _Arrivals:
    """When the callback was called. Noted by one thread, awaited by another."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._at = 0.0

    def note(self) -> None:
        self._at = time.perf_counter()
        self._event.set()

    def forget_first(self) -> None:
        """Wait for the call that tells the state at the start."""
        assert self._event.wait(10)
        # A late "created" or progress must not be taken for the first change.
        time.sleep(0.05)

    def latencies(self, writer: Stub, key: str, times: int) -> list[float]:
        """Write ``times`` changes one after the other; return how late each was known."""
        taken = []
        for number in range(times):
            self._event.clear()
            begins = time.perf_counter()
            writer.set(key, str(time.monotonic_ns() + number).encode())
            assert self._event.wait(10), "the change was not told"
            taken.append(self._at - begins)
        return taken


def configuration(bench: Bench, leaves: int = 10_000) -> list[Row]:
    """Return the load of a large configuration."""
    row = Row(f"load {leaves} leaves", "one raw Range + C YAML of the joined text", "<= 2x")
    values = {f"table{i // 100}.leaf{i % 100}": i if i % 2 else f"text {i}" for i in range(leaves)}
    with bench.client() as client, bench.stub() as stub:
        client.config_source("large").save(values)

        def floor() -> None:
            answer = stub.read("/bench/config/large/")
            text = "\n".join(
                f"{kv.key.rpartition(b'/')[2].decode()}: {kv.value.decode()}" for kv in answer.kvs
            )
            assert len(yaml.load(text, Loader=_LOADER)) == leaves

        def ours() -> None:
            # A new source each time: one that has read before keeps what it decoded.
            assert len(client.config_source("large").load()) == leaves

        compare(row, lambda: timed(floor, 1), lambda: timed(ours, 1), 5, 2.0)
        source = client.config_source("large")
        source.load()
        again = statistics.median(timed(source.load, 3))
        row.notes.append(f"{seconds(again)} when the same source loads again")
    with bench.counted() as (client, counter):
        row.requests = show_requests(per_operation(counter, client.config_source("large").load, 3))
    return [row]


class _Plain:
    def method(self) -> bool:
        return True


def reads(bench: Bench) -> list[Row]:
    """Return what a look at held state costs."""
    with bench.counted() as (client, counter):
        client.register(Descriptor(name="picked", id="p-1", address="127.0.0.1:80"))
        client.register(Descriptor(name="picked", id="p-2", address="127.0.0.1:81"))
        view = client.services("picked")
        lock = client.lock("read")
        election = client.campaign("read", "me")
        calls: dict[str, Callable[[], object]] = {
            "ServiceView.pick()": view.pick,
            "Election.is_leader": lambda: election.is_leader,
            "Lock.held": lambda: lock.held,
        }
        # A lock and a leadership that last get a watch on their key, once.
        time.sleep(1.0)
        rows = [_read_row(name, call, counter) for name, call in calls.items()]
        lock.unlock()
        election.resign()
    return rows


def _read_row(name: str, call: Callable[[], object], counter: RpcCounter) -> Row:
    row = Row(name, "a Python method call", "< 3 us, no I/O")
    plain = _Plain().method

    def batch(function: Callable[[], object]) -> list[float]:
        return [timeit.timeit(function, number=20_000) / 20_000]

    counter.reset()
    compare(row, lambda: batch(plain), lambda: batch(call), 5)
    others = {k: v for k, v in counter.counts.items() if k != "LeaseKeepAlive"}
    row.requests = show_requests({k: float(v) for k, v in others.items()})
    row.check(row.ours is not None and row.ours < _READS_LIMIT and not others)
    return row
