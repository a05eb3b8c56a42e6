"""A soak: much of everything on a few clients, disturbed again and again, leaves nothing behind.

pytest tests/faults/test_soak.py --soak 600 -s
"""

from __future__ import annotations

import gc
import logging
import threading
import time
import urllib.request
import uuid
from contextlib import ExitStack
from dataclasses import dataclass

import psutil
import pytest

from checkers import Witness
from etcd_core import Client, Config, Descriptor, EtcdError, Registration
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.watch import Delivery, Ended

REGISTRATIONS = 200
CONTENDERS = 50
WATCHES = 20
RESET_EVERY = 5.0
# A queue behind each lock all the time, and no more turns than leave the machine idle in between.
HOLD_FOR = 0.08


@dataclass(frozen=True)
class Figures:
    """What may not grow."""

    threads: int
    descriptors: int
    resident: int
    leases: int
    watchers: int
    keys: int

    @classmethod
    def take(cls, server: EtcdServer, prefix: str) -> Figures:
        """Measure now."""
        gc.collect()
        process = psutil.Process()
        with Witness(server.endpoint) as witness:
            leases, keys = len(witness.leases()), len(witness.range(prefix))
        return cls(
            threads=sum(not t.name.startswith("etcd-test-") for t in threading.enumerate()),
            descriptors=_lowest_descriptors(process),
            resident=process.memory_info().rss,
            leases=leases,
            watchers=_watchers(server),
            keys=keys,
        )

    def __str__(self) -> str:
        return (
            f"{self.threads} threads, {self.descriptors} fds, {self.resident / 2**20:.0f} MiB,"
            f" {self.leases} leases, {self.watchers} watchers, {self.keys} keys"
        )


def _lowest_descriptors(process: psutil.Process) -> int:
    """Return the fewest within a second: gRPC closes sockets (the witness's too) a little later."""
    counts = []
    for _ in range(20):
        counts.append(process.num_fds())
        time.sleep(0.05)
    return min(counts)


def _watchers(server: EtcdServer) -> int:
    with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("etcd_debugging_mvcc_watcher_total "):
                return int(float(line.split()[1]))
    raise AssertionError("etcd does not count its watchers")


class Contention:
    """Threads that take one of a few locks in turn, until told to stop."""

    def __init__(self, client: Client, count: int) -> None:
        self.taken = 0
        self.failed = 0
        self.crashes: list[BaseException] = []
        self._client = client
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(f"soak-{n % 3}",), name=f"soak-{n}")
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, name: str) -> None:
        try:
            while not self._stop.is_set():
                self._turn(name)
        except BaseException as exc:
            self.crashes.append(exc)

    def _turn(self, name: str) -> None:
        try:
            with self._client.lock(name, ttl=10, timeout=5) as lock:
                self._stop.wait(HOLD_FOR)
                assert lock.held
        except EtcdError:
            with self._lock:
                self.failed += 1
            self._stop.wait(0.05)
        else:
            with self._lock:
                self.taken += 1
            self._stop.wait(0.02)

    def stop(self) -> None:
        """End all threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert self.crashes == []


def _blame(missing: list[Registration]) -> bool:
    raise AssertionError(f"{len(missing)} are not registered: {missing[:3]}")


def _disturb(proxy: FaultProxy, seconds: float) -> list[str]:
    """Reset every connection now and then; return the figures on the way."""
    process = psutil.Process()
    ends = time.monotonic() + seconds
    seen = []
    while (left := ends - time.monotonic()) > 0:
        time.sleep(min(RESET_EVERY, left))
        proxy.reset()
        resident = process.memory_info().rss / 2**20
        seen.append(f"{threading.active_count()}t/{process.num_fds()}fd/{resident:.0f}M")
    return seen


def _round(proxy: FaultProxy, prefix: str, seconds: float) -> None:
    """Use a few clients for everything, then close them."""
    with ExitStack() as stack:
        config = Config([proxy.endpoint], prefix=prefix)
        registrar, contender, watcher = (stack.enter_context(Client(config)) for _ in range(3))
        held = [
            registrar.register(
                Descriptor(name="soak", id=f"s-{n}", address=f"127.0.0.1:{n + 1}"), ttl=10
            )
            for n in range(REGISTRATIONS)
        ]
        ended: list[Delivery] = []

        def sink(delivery: Delivery) -> None:
            if isinstance(delivery, Ended):
                ended.append(delivery)

        hub = watcher.scope().engine.hub
        for number in range(WATCHES):
            hub.watch(f"{prefix}/locks/soak-{number % 3}/".encode(), sink, range_end=b"\0")
        contention = Contention(contender, CONTENDERS)
        try:
            on_the_way = _disturb(proxy, seconds)
        finally:
            contention.stop()
        eventually(
            lambda: not (missing := [one for one in held if not one.registered]) or _blame(missing),
            30,
            0.1,
            "all registered",
        )
        assert len(watcher.discover("soak")) == REGISTRATIONS
        assert ended == [], f"watches ended: {ended}"
        print(f"  {contention.taken} locks taken, {contention.failed} not; {on_the_way}")
        assert contention.taken > 10 * seconds


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_soak(soak_seconds: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="etcd_core")
    prefix = f"/soak/{uuid.uuid4().hex}"
    with EtcdServer() as server, FaultProxy(server.endpoint) as proxy:
        # What is made once for the process (imports, gRPC's own threads) is no growth.
        _round(proxy, prefix, 1.0)
        before = _settled(server, prefix, proxy)
        _round(proxy, prefix, soak_seconds)
        after = _settled(server, prefix, proxy)
    print(f"soak of {soak_seconds:g} s\n  before: {before}\n  after:  {after}")
    assert after.threads <= before.threads
    assert after.descriptors <= before.descriptors + 2
    assert (after.leases, after.watchers, after.keys) == (0, 0, 0)
    # An allocator keeps what it once had: a fifth and 20 MiB are no leak, more may be.
    assert after.resident < before.resident * 1.2 + (20 << 20)


def _settled(server: EtcdServer, prefix: str, proxy: FaultProxy) -> Figures:
    eventually(lambda: proxy.connections == 0, 20, 0.1, "every connection is closed")
    eventually(
        lambda: (f := Figures.take(server, prefix)).watchers + f.leases + f.keys == 0,
        20,
        0.2,
        "no watcher, lease or key",
    )
    return Figures.take(server, prefix)
