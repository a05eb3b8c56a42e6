"""How time and memory grow with the number of instances, leaves, registrations, waiters, watches.

Every size is measured in a process of its own, so that none pays for the one before it; there in
the main thread, the library's own, and one ``etcd-bench-waiter`` thread per contender.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import psutil

from etcd_core import Client, ConfigSnapshot, Descriptor
from etcd_core.keys import service_key
from etcd_core.watch import Created, Delivery, Events
from etcd_core.wire import messages as pb

from .core_rows import Bench
from .measure import Row, percentile, show
from .stub import Stub

Figures = dict[str, float]
Program = Callable[[Bench, int], Figures]

_MIB = "MiB"
_APART = "apart"
_CHANGES = 20
_TURNS = 256
_LIMIT = 300.0
# An exponent of 1 is proportional to the size; the rest is the noise of a shared machine.
_PROPORTIONAL = 1.2
_FLAT = 0.35


@dataclass(frozen=True)
class Family:
    """One thing at several sizes.

    Attributes:
        name: What there are so many of.
        sizes: How many.
        program: Measures one size; gives figures by name, in seconds, those on memory in MiB.
        bars: The largest exponent of growth, by figure; the others have no bar.
    """

    name: str
    sizes: tuple[int, ...]
    program: Program
    bars: dict[str, float]


def scale(bench: Bench) -> list[Row]:
    """Return a row per figure: smallest size, largest size, and how it grows; quick ones stop."""
    families = _FAMILIES
    if bench.effort.iterations < 100:
        families = tuple(Family(f.name, f.sizes[:2], f.program, f.bars) for f in families)
    return [row for family in families for row in _rows(bench, family)]


def _rows(bench: Bench, family: Family) -> list[Row]:
    found = {size: _alone(family.program, bench, size) for size in family.sizes}
    names = found[family.sizes[0]]
    return [
        _row(family, name, {size: found[size][name] for size in family.sizes}) for name in names
    ]


def _row(family: Family, name: str, found: dict[int, float]) -> Row:
    smallest, *between, largest = family.sizes
    row = Row(f"{largest:,} {family.name}: {name}", f"{smallest:,}")
    row.unit = next((unit for unit in (_MIB, _APART) if name.endswith(unit)), "s")
    row.floor, row.ours = found[smallest], found[largest]
    row.requests = ", ".join(f"{size:,}: {show(found[size], row.unit)}" for size in between)
    if row.floor > 0 and row.ours > 0:
        _judge(row, largest / smallest, family.bars.get(name))
    return row


def _judge(row: Row, growth: float, limit: float | None) -> None:
    """Say how the figure grew while the size grew by the factor ``growth``."""
    assert row.floor is not None
    assert row.ours is not None
    row.ratio = row.ours / row.floor
    exponent = math.log(row.ratio) / math.log(growth)
    row.bar = f"size^{exponent:.2f}"
    grown = f"x{growth:g} in size makes it x{row.ratio:.3g}"
    if limit == _PROPORTIONAL or row.unit == _MIB:
        grown += f": {row.ratio / growth:.2g} times as much for each"
    row.notes.append(grown)
    if limit is not None:
        row.bar += f" <= {limit}"
        row.check(exponent <= limit)


def _alone(program: Program, bench: Bench, size: int) -> Figures:
    """Run one size in a fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(program, (bench, size)).get(_LIMIT)


@contextmanager
def _memory(figures: Figures) -> Iterator[None]:
    """Note by how much the process grew."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    yield
    gc.collect()
    figures[f"memory, {_MIB}"] = max(0.0, (psutil.Process().memory_info().rss - before) / 2**20)


def _seconds(action: Callable[[], object]) -> float:
    begins = time.perf_counter()
    action()
    return time.perf_counter() - begins


def _fill(stub: Stub, pairs: list[tuple[str, bytes]]) -> None:
    for start in range(0, len(pairs), 100):
        puts = [
            pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value))
            for key, value in pairs[start : start + 100]
        ]
        stub.txn(pb.TxnRequest(success=puts))


def _median_wait(change: Callable[[int], object], told: Callable[[int], bool]) -> float:
    """Return how long it takes until ``told(n)`` after ``change(n)``, looking every 0.1 ms."""
    taken = []
    for number in range(_CHANGES):
        begins = time.perf_counter()
        change(number)
        while not told(number):
            assert time.perf_counter() < begins + 30, "the change was not told"
            time.sleep(0.0001)
        taken.append(time.perf_counter() - begins)
    return statistics.median(taken)


# -- the programs ------------------------------------------------------------------------------


def view(bench: Bench, size: int) -> Figures:
    """Measure a ``ServiceView``."""
    name, figures = f"scale{size}", Figures()

    def entry(number: int, port: int) -> tuple[str, bytes]:
        info = Descriptor(name=name, id=f"i-{number}", address=f"10.0.0.1:{port}")
        return service_key("/bench", name, info.id), info.encode()

    with bench.stub() as stub, bench.client() as client:
        _fill(stub, [entry(number, 80) for number in range(size)])
        client.leader("warm")
        with _memory(figures):
            begins = time.perf_counter()
            found = client.services(name)
            assert len(found.instances) == size
            figures["first view"] = time.perf_counter() - begins

        def change(number: int) -> None:
            key, value = entry(0, 1000 + number)
            stub.set(key, value)

        def told(number: int) -> bool:
            # The first by its id; the look itself makes the tuple of all of them anew.
            return found.instances[0].address == f"10.0.0.1:{1000 + number}"

        figures["one change until it is in the view"] = _median_wait(change, told)
        found.close()
        stub.clear(f"/bench/services/{name}/")
    return figures


def config(bench: Bench, size: int) -> Figures:
    """Measure a configuration, and settings made of it."""
    name, figures = f"scale{size}", Figures()
    values: dict[str, object] = {f"t{i // 100}.leaf{i % 100}": f"text {i}" for i in range(size)}
    with bench.stub() as stub, bench.client() as client:
        source = client.config_source(name)
        source.save(values, timeout=60)
        with _memory(figures):
            figures["load"] = statistics.median(
                _seconds(lambda: _load(client, name)) for _ in range(3)
            )
            snapshot = _load(client, name)
        saves = []
        for number in range(5):
            changed = {**values, "t0.leaf0": f"changed {number}"}
            saves.append(_seconds(partial(source.save, changed, expect=snapshot)))
            snapshot = source.load()
        figures["save of one changed leaf"] = statistics.median(saves)
        figures["update of one leaf"] = statistics.median(
            _seconds(partial(source.update, {"t0.leaf0": number})) for number in range(5)
        )
        seen: list[object] = [None]

        def note(fresh: ConfigSnapshot) -> None:
            seen[0] = fresh["t0.leaf1"]

        def change(number: int) -> None:
            stub.set(f"/bench/config/{name}/t0.leaf1", f"v{number}".encode())

        with source.watch(note):
            figures["one change until on_change read it"] = _median_wait(
                change, lambda number: seen[0] == f"v{number}"
            )
        figures["one change until it is in Dynaconf's settings"] = _in_settings(bench, name, change)
        stub.clear(f"/bench/config/{name}/")
    return figures


def _load(client: Client, name: str) -> ConfigSnapshot:
    """Load, and look at every leaf, with a source that has read nothing before."""
    snapshot = client.config_source(name).load()
    assert snapshot["t0.leaf0"]
    return snapshot


def _in_settings(bench: Bench, name: str, change: Callable[[int], object]) -> float:
    from dynaconf import Dynaconf

    import dynaconf_etcd

    settings = Dynaconf(
        loaders=["dynaconf_etcd.loader"],
        etcd_for_dynaconf={"endpoints": [bench.endpoint], "prefix": "/bench", "name": name},
    )
    assert settings.get("t0.leaf1")
    try:
        return _median_wait(
            lambda number: change(number + _CHANGES),
            lambda number: settings.T0.leaf1 == f"v{number + _CHANGES}",
        )
    finally:
        dynaconf_etcd.close(settings)


def registrations(bench: Bench, size: int) -> Figures:
    """Measure many registrations in one process."""
    figures = Figures()
    with bench.client() as client:
        client.leader("warm")
        held = []
        with _memory(figures):
            begins = time.perf_counter()
            for number in range(size):
                info = Descriptor(name="scale", id=f"s-{number}", address=f"127.0.0.1:{number + 1}")
                held.append(client.register(info))
            figures["register, each"] = (time.perf_counter() - begins) / size
        begins = time.perf_counter()
        for registration in held:
            registration.deregister()
        figures["deregister, each"] = (time.perf_counter() - begins) / size
    return figures


def contenders(bench: Bench, size: int) -> Figures:
    """Measure threads that contend for one lock."""
    log: list[tuple[int, int, float, float, float]] = []
    barrier = threading.Barrier(size)

    def contend(number: int, client: Client) -> None:
        barrier.wait(30)
        for _ in range(_TURNS // size):
            asked = time.perf_counter()
            lock = client.lock("crowd", ttl=30, timeout=60)
            taken = time.perf_counter()
            log.append((lock.token, number, asked, taken, time.perf_counter()))
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
    assert len(log) == size * (_TURNS // size)
    assert [entry[0] for entry in log] == sorted(entry[0] for entry in log), "not in order"
    gaps = [later[3] - earlier[4] for earlier, later in itertools.pairwise(log)]
    waits = [entry[3] - entry[2] for entry in log]
    turns = [[entry[1] for entry in log[: len(log) // 2]].count(n) for n in range(size)]
    return {
        "hand-over p50": statistics.median(gaps),
        "hand-over p99": percentile(gaps, 0.99),
        "wait of a whole queue, p50": statistics.median(waits),
        "longest wait": max(waits),
        f"most and fewest turns at half time, {_APART}": float(max(turns) - min(turns)),
    }


def watches(bench: Bench, size: int) -> Figures:
    """Measure many watches on one client."""
    figures = Figures()
    with bench.stub() as stub, bench.client() as client:
        hub = client.scope().engine.hub
        client.leader("warm")
        created, arrived = threading.Semaphore(0), threading.Event()

        def sink(delivery: Delivery) -> None:
            if isinstance(delivery, Created):
                created.release()
            elif isinstance(delivery, Events):
                arrived.set()

        with _memory(figures):
            begins = time.perf_counter()
            live = [hub.watch(f"/bench/watch/{number}".encode(), sink) for number in range(size)]
            for _ in live:
                assert created.acquire(timeout=20)
            figures["all of them live"] = time.perf_counter() - begins
        taken = []
        for _ in range(_CHANGES):
            arrived.clear()
            begins = time.perf_counter()
            stub.set(f"/bench/watch/{size - 1}")
            assert arrived.wait(10)
            taken.append(time.perf_counter() - begins)
        figures["an event for the last"] = statistics.median(taken)
        begins = time.perf_counter()
        for watch in live:
            watch.cancel()
        figures["cancel, each"] = (time.perf_counter() - begins) / size
    return figures


_FAMILIES: tuple[Family, ...] = (
    Family(
        "instances in a ServiceView",
        (100, 1_000, 10_000),
        view,
        {"first view": _PROPORTIONAL, "one change until it is in the view": _PROPORTIONAL},
    ),
    Family(
        "leaves of a configuration",
        (100, 1_000, 10_000),
        config,
        {
            "load": _PROPORTIONAL,
            "save of one changed leaf": _PROPORTIONAL,
            "update of one leaf": _PROPORTIONAL,
            "one change until on_change read it": _PROPORTIONAL,
            "one change until it is in Dynaconf's settings": _PROPORTIONAL,
        },
    ),
    Family(
        "registrations in one process",
        (10, 100, 1_000),
        registrations,
        {"register, each": _FLAT, "deregister, each": _FLAT},
    ),
    Family(
        "contenders for one lock",
        (4, 16, 64),
        contenders,
        {"hand-over p50": _FLAT, "wait of a whole queue, p50": _PROPORTIONAL},
    ),
    Family(
        "watches on one client",
        (10, 100, 1_000),
        watches,
        {"all of them live": _PROPORTIONAL, "an event for the last": _FLAT, "cancel, each": _FLAT},
    ),
)
