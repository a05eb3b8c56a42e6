"""How time and memory grow with the number of instances, leaves, registrations, waiters, watches.

Main thread, the library's own, and one ``etcd-bench-waiter`` thread per contender.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import threading
import time
from collections.abc import Callable

import psutil

from etcd_core import Client, ConfigSnapshot, Descriptor
from etcd_core.keys import service_key
from etcd_core.watch import Created, Delivery, Events
from etcd_core.wire import messages as pb

from .core_rows import Bench
from .measure import Row, percentile, seconds
from .stub import Stub

_SIZES = (100, 1_000, 10_000)


def scale(bench: Bench) -> list[Row]:
    """Return the rows of growth; quick runs stop at a thousand."""
    sizes = _SIZES if bench.effort.iterations >= 100 else _SIZES[:2]
    rows = [_view(bench, size) for size in sizes]
    rows += [_config(bench, size) for size in sizes]
    rows += [_registrations(bench, size) for size in sizes if size <= 1_000]
    rows += [_contenders(bench, size) for size in (2, 8, 64)]
    rows += [_watches(bench, size) for size in sizes if size <= 1_000]
    return rows


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _fill(stub: Stub, pairs: list[tuple[str, bytes]]) -> None:
    for start in range(0, len(pairs), 100):
        puts = [
            pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value))
            for key, value in pairs[start : start + 100]
        ]
        stub.txn(pb.TxnRequest(success=puts))


def _median_wait(change: Callable[[int], None], told: Callable[[], bool], times: int = 20) -> float:
    taken = []
    for number in range(times):
        begins = time.perf_counter()
        change(number)
        deadline = begins + 10
        while not told():
            assert time.perf_counter() < deadline, "the change was not told"
            time.sleep(0.0001)
        taken.append(time.perf_counter() - begins)
    return statistics.median(taken)


def _view(bench: Bench, size: int) -> Row:
    row = Row(f"ServiceView of {size} instances, first view")
    name = f"scale{size}"

    def entry(number: int, port: int) -> tuple[str, bytes]:
        info = Descriptor(name=name, id=f"i-{number}", address=f"10.0.0.1:{port}")
        return service_key("/bench", name, info.id), info.encode()

    with bench.stub() as stub, bench.client() as client:
        _fill(stub, [entry(number, 80) for number in range(size)])
        client.leader("warm")
        resident = _resident()
        begins = time.perf_counter()
        view = client.services(name)
        assert len(view.instances) == size
        row.ours = time.perf_counter() - begins
        row.notes.append(f"{(_resident() - resident) / 2**20:.1f} MiB")
        port = [80]

        def change(number: int) -> None:
            port[0] = 1000 + number
            key, value = entry(0, port[0])
            stub.set(key, value)

        def told() -> bool:
            return any(i.address == f"10.0.0.1:{port[0]}" for i in view.instances)

        one = _median_wait(change, told)
        row.notes.append(f"one change in the view after {seconds(one)}, a look at all included")
        view.close()
        stub.clear(f"/bench/services/{name}/")
    return row


def _config(bench: Bench, size: int) -> Row:
    row = Row(f"config of {size} leaves, load")
    values: dict[str, object] = {f"t{i // 100}.leaf{i % 100}": f"text {i}" for i in range(size)}
    with bench.stub() as stub, bench.client() as client:
        name = f"scale{size}"
        source = client.config_source(name)
        source.save(values)
        begins = time.perf_counter()
        snapshot = bench_load(client, name)
        row.ours = time.perf_counter() - begins
        begins = time.perf_counter()
        source.save({**values, "t0.leaf0": "changed"}, expect=snapshot)
        row.notes.append(f"save of one changed leaf {seconds(time.perf_counter() - begins)}")
        seen: list[object] = [None]

        def note(fresh: object) -> None:
            seen[0] = fresh["t0.leaf1"]  # type: ignore[index]

        with source.watch(note):
            one = _median_wait(
                lambda number: stub.set(f"/bench/config/{name}/t0.leaf1", f"v{number}".encode()),
                _Turn(seen),
            )
        row.notes.append(f"live change told after {seconds(one)}")
        stub.clear(f"/bench/config/{name}/")
    return row


class _Turn:
    """True once per new value."""

    def __init__(self, seen: list[object]) -> None:
        self._seen = seen
        self._number = 0

    def __call__(self) -> bool:
        if self._seen[0] != f"v{self._number}":
            return False
        self._number += 1
        return True


def bench_load(client: Client, name: str) -> ConfigSnapshot:
    """Load with a source that has read nothing before."""
    return client.config_source(name).load()


def _registrations(bench: Bench, size: int) -> Row:
    row = Row(f"{size} registrations in one process, each")
    with bench.client() as client:
        resident = _resident()
        begins = time.perf_counter()
        held = [
            client.register(
                Descriptor(name="scale", id=f"s-{number}", address=f"127.0.0.1:{number + 1}")
            )
            for number in range(size)
        ]
        row.ours = (time.perf_counter() - begins) / size
        row.notes.append(f"{(_resident() - resident) / size / 1024:.1f} KiB each")
        begins = time.perf_counter()
        for registration in held:
            registration.deregister()
        row.notes.append(f"deregister {seconds((time.perf_counter() - begins) / size)} each")
    return row


def _contenders(bench: Bench, size: int, rounds: int = 4) -> Row:
    row = Row(f"hand-over with {size} contenders on one lock, p50")
    log: list[tuple[int, int, float, float]] = []
    barrier = threading.Barrier(size)

    def contend(number: int, client: Client) -> None:
        barrier.wait(30)
        for _ in range(rounds):
            lock = client.lock("crowd", ttl=30, timeout=60)
            taken = time.perf_counter()
            log.append((lock.token, number, taken, time.perf_counter()))
            lock.unlock()

    with bench.client() as client:
        client.lock("crowd").unlock()
        threads = [
            threading.Thread(target=contend, args=(number, client), name="etcd-bench-waiter")
            for number in range(size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert len(log) == size * rounds
    in_order = [entry[0] for entry in log] == sorted(entry[0] for entry in log)
    gaps = [later[2] - earlier[3] for earlier, later in itertools.pairwise(log)]
    row.ours = statistics.median(gaps)
    shares = [[entry[1] for entry in log[: len(log) // 2]].count(n) for n in range(size)]
    row.notes.append(
        f"p99 {seconds(percentile(gaps, 0.99))}; served in order of joining: {in_order};"
        f" {min(shares)} to {max(shares)} turns each in the first half"
    )
    row.check(in_order)
    return row


def _watches(bench: Bench, size: int) -> Row:
    row = Row(f"{size} watches on one client, an event for the last")
    with bench.stub() as stub, bench.client() as client:
        hub = client.scope().engine.hub
        created, arrived = threading.Semaphore(0), threading.Event()

        def sink(delivery: Delivery) -> None:
            if isinstance(delivery, Created):
                created.release()
            elif isinstance(delivery, Events):
                arrived.set()

        begins = time.perf_counter()
        watches = [hub.watch(f"/bench/watch/{number}".encode(), sink) for number in range(size)]
        for _ in watches:
            assert created.acquire(timeout=20)
        row.notes.append(f"all live after {seconds(time.perf_counter() - begins)}")
        taken = []
        for _ in range(20):
            arrived.clear()
            begins = time.perf_counter()
            stub.set(f"/bench/watch/{size - 1}")
            assert arrived.wait(10)
            taken.append(time.perf_counter() - begins)
        row.ours = statistics.median(taken)
        for watch in watches:
            watch.cancel()
    return row
