"""What a fleet does while something breaks etcd, and the judges of each part (J1 to J3, J5, J6).

A load has one thread, ``load-...``, that runs until :meth:`Load.stop`; an error of etcd is expected
there and counted, any other error is what :meth:`Load.check` fails with. The judgement needs etcd
healed: every load first waits for its liveness.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass

from checkers import Happened, WatchLog, WriteLog
from etcd_core import Client, Descriptor, EtcdError, Lock, OutcomeUnknown, ServiceEvent
from etcd_core.errors import Compacted
from etcd_core.keys import prefix_range_end
from etcd_core.testing import eventually
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT, RANGE, TXN

_SURE = 0.05
# Faults find locks held, and a queue behind them; without a rest the load would be the machine's.
_HOLD = 0.02


class Load(ABC):
    """One kind of work, in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds = 0
        self.errors: Counter[str] = Counter()
        self.crash: BaseException | None = None
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load-{name}")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout: float = 90.0) -> None:
        """Stop after the round that is under way."""
        self.stopping.set()
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"{self.name} hangs"
        if self.crash is not None:
            raise self.crash

    def figures(self) -> str:
        """Return what was done, for the output."""
        errors = ", ".join(f"{count} {name}" for name, count in self.errors.most_common())
        return f"{self.name}: {self.rounds} rounds, {errors or 'no error'}"

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                try:
                    self.round()
                    self.rounds += 1
                except EtcdError as exc:
                    self.errors[type(exc).__name__] += 1
                    self.stopping.wait(0.02)
        except BaseException as exc:
            self.crash = exc

    @abstractmethod
    def round(self) -> None:
        """Do it once."""

    @abstractmethod
    def check(self, client: Client, patience: float) -> None:
        """Judge, with a client that works; liveness within ``patience`` seconds."""


def read(client: Client, prefix: str) -> list[pb.KeyValue]:
    """Return the keys under ``prefix``."""
    key = prefix.encode()
    request = pb.RangeRequest(key=key, range_end=prefix_range_end(key))
    return list(client.scope().engine.channel.unary(RANGE, request, what="read", timeout=20).kvs)


# -- J1 ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One time that somebody held the lock: sure of it from ``begins`` to ``ends``."""

    token: int
    value: int | None
    begins: float
    ends: float
    worker: str


class CountUnderLock(Load):
    """Takes the lock, raises a counter that the lock's guard fences, releases.

    Args:
        client: This worker's own client.
        lock: The lock's name.
        turns: Shared by all workers of the lock.
        prey: Somebody deletes the lock's keys or leases, so that the guard can fail before the
            holder hears of it.
    """

    def __init__(
        self, name: str, client: Client, lock: str, turns: list[Turn], *, prey: bool = False
    ) -> None:
        super().__init__(name)
        self._client = client
        self._lock = lock
        self._turns = turns
        self._prey = prey
        self._counter = f"{client.prefix}/counters/{lock}"
        self.unknown = 0

    def round(self) -> None:
        lock = self._client.lock(self._lock, ttl=5, timeout=10)
        begins = ends = time.monotonic()
        value = None
        try:
            self.stopping.wait(_HOLD)
            seen, counted = self._raise(lock)
            now = time.monotonic()
            if lock.held and lock.remaining > _SURE:
                ends = now
                if not counted and not self._prey:
                    raise AssertionError(f"J1: the guard of {lock!r} failed while it was held")
            if counted:
                value = seen + 1
        except EtcdError as exc:
            self.unknown += exc.outcome_unknown or isinstance(exc, OutcomeUnknown)
            raise
        finally:
            self._turns.append(Turn(lock.token, value, begins, ends, self.name))
            lock.unlock(timeout=2)

    def _raise(self, lock: Lock) -> tuple[int, bool]:
        """Raise the counter by one if the lock is ours and nobody was faster."""
        channel = self._client.scope().engine.channel
        key = self._counter.encode()
        found = channel.unary(RANGE, pb.RangeRequest(key=key), what="read the counter").kvs
        seen, mod = (int(found[0].value), found[0].mod_revision) if found else (0, 0)
        unchanged = pb.Compare(
            key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=mod
        )
        put = pb.PutRequest(key=key, value=str(seen + 1).encode())
        request = pb.TxnRequest(
            compare=[lock.guard().build_message(), unchanged],
            success=[pb.RequestOp(request_put=put)],
        )
        return seen, channel.unary(TXN, request, what="count").succeeded

    def check(self, client: Client, patience: float) -> None:
        """Wait until the lock can be had; the turns are judged together, by :func:`check_turns`."""
        client.lock(self._lock, ttl=5, timeout=patience).unlock()


def check_turns(client: Client, workers: list[CountUnderLock], turns: list[Turn]) -> None:
    """Assert mutual exclusion over the turns of all workers of one lock (J1)."""
    ordered = sorted(turns, key=lambda turn: turn.token)
    tokens = [turn.token for turn in ordered]
    assert len(set(tokens)) == len(tokens), "a token was used twice"
    values = [turn.value for turn in ordered if turn.value is not None]
    assert values == sorted(set(values)), f"the counter did not follow the tokens: {values}"
    final = read(client, workers[0]._counter)
    count = int(final[0].value) if final else 0
    unknown = sum(worker.unknown for worker in workers)
    assert len(values) <= count <= len(values) + unknown, (
        f"the counter is {count} after {len(values)} successes and {unknown} unknown outcomes"
    )
    if not any(worker._prey for worker in workers):
        for earlier, later in itertools.pairwise(ordered):
            assert earlier.ends <= later.begins, f"two owners at once: {earlier} and {later}"


# -- J2 and J3 ---------------------------------------------------------------------------------


class WriteAndWatch(Load):
    """Puts keys that are written once, while a raw watch on another client looks on.

    Each id is a key of its own and is never written again, so that a read at the end is the whole
    history, compacted or not.
    """

    def __init__(self, name: str, writer: Client, watcher: Client) -> None:
        super().__init__(name)
        self._prefix = f"{writer.prefix}/written/"
        self._writer = writer
        self._hub = watcher.scope().engine.hub
        self._log = WriteLog()
        self._watches: list[tuple[int, WatchLog]] = []
        first = watcher.scope().engine.channel.unary(
            RANGE, pb.RangeRequest(key=b"\0", limit=1), what="revision"
        )
        self._watch_from(first.header.revision + 1)

    def _watch_from(self, revision: int) -> None:
        log = WatchLog()
        self._watches.append((revision, log))
        start = self._prefix.encode()
        self._handle = self._hub.watch(
            start, log, range_end=prefix_range_end(start), start_revision=revision
        )

    def round(self) -> None:
        # Not a round number of the loop: a failed round is tried again with another id.
        unique = f"{time.monotonic_ns():x}"
        key = (self._prefix + unique).encode()
        channel = self._writer.scope().engine.channel
        error = self._log.attempt(
            unique,
            lambda value: channel.unary(
                PUT, pb.PutRequest(key=key, value=value), what="put", timeout=3
            ),
        )
        ended = self._watches[-1][1].error
        if isinstance(ended, Compacted):
            self._watch_from(ended.compact_revision)
        elif ended is not None:
            raise AssertionError(f"the raw watch ended: {ended!r}") from ended
        if error is not None:
            raise error
        self.stopping.wait(0.02)

    def check(self, client: Client, patience: float) -> None:
        found = sorted(read(client, self._prefix), key=lambda kv: kv.mod_revision)
        history = [
            Happened(kv.mod_revision, kv.key, "PUT", kv.value, kv.create_revision) for kv in found
        ]
        self._log.check(history)
        ended = self._watches[-1][1].error
        if isinstance(ended, Compacted):
            self._watch_from(ended.compact_revision)
        for number, (first, log) in enumerate(self._watches):
            last = history[-1].revision if number == len(self._watches) - 1 else log.last_revision
            expected = [e for e in history if first <= e.revision <= last]
            if expected:
                log.wait_revision(expected[-1].revision, patience)
            log.check(expected)
        self._handle.cancel()

    def figures(self) -> str:
        log = self._log
        parts = f"{len(log.ok)} ok, {len(log.failed)} failed, {len(log.unknown)} unknown"
        return f"{super().figures()} ({parts}; {len(self._watches)} watches)"


# -- J5 ----------------------------------------------------------------------------------------


class SaveAndReload(Load):
    """Saves configurations whose leaves belong together, while a watcher compares them."""

    def __init__(self, name: str, writer: Client, watcher: Client) -> None:
        super().__init__(name)
        self._source = writer.config_source("load")
        self._source.save(self._version(0))
        self._torn: list[object] = []
        self._seen = 0
        self._last: object = None
        self._subscription = watcher.config_source("load").watch(self._look)

    @staticmethod
    def _version(number: int) -> dict[str, object]:
        extra = {f"extra{number % 5}": number}
        return {"a": number, "deep": {"b": number, **extra}, "c": {"d": {"e": number}}}

    def _look(self, snapshot: object) -> None:
        values = dict(snapshot)  # type: ignore[call-overload]
        self._seen += 1
        self._last = values
        if len(set(values.values())) != 1 or len(values) != 4:
            self._torn.append(values)

    def round(self) -> None:
        self._source.save(self._version(self.rounds + 1), timeout=3)
        self.stopping.wait(0.05)

    def check(self, client: Client, patience: float) -> None:
        final = dict(client.config_source("load").load(timeout=20))
        eventually(lambda: self._last == final, patience, message="the watcher's last state")
        self._subscription.cancel()
        assert self._torn == [], f"J5: {self._torn[:3]}"

    def figures(self) -> str:
        return f"{super().figures()} ({self._seen} snapshots seen)"


# -- J6 ----------------------------------------------------------------------------------------


class Registered(Load):
    """Registers instances and keeps them, and replays what a watcher is told of them."""

    def __init__(self, name: str, registrar: Client, watcher: Client, count: int = 5) -> None:
        super().__init__(name)
        self._held = [
            registrar.register(
                Descriptor(name="fleet", id=f"i-{n}", address=f"10.0.0.{n + 1}:80"), ttl=3
            )
            for n in range(count)
        ]
        self._events: list[ServiceEvent] = []
        self._subscription = watcher.watch_service("fleet", self._events.append)
        self._view = watcher.services("fleet")

    def round(self) -> None:
        held = self._held[self.rounds % len(self._held)]
        held.update(metadata={"round": str(self.rounds)}, timeout=3)
        self.stopping.wait(0.2)

    def _replayed(self) -> dict[str, Descriptor]:
        """Return what the events add up to; each must make sense after those before it (D2)."""
        known: dict[str, Descriptor] = {}
        for event in list(self._events):
            there = event.info.id in known
            kind = str(event.type)
            assert there == (kind != "added"), f"J6: {event} while known: {there}"
            if kind == "removed":
                del known[event.info.id]
            else:
                known[event.info.id] = event.info
        return known

    def _agreed(self, client: Client) -> bool:
        wanted = {held.info.id: held.info for held in self._held}
        found = {info.id: info for info in client.discover("fleet", timeout=20)}
        seen = {info.id: info for info in self._view.instances}
        return wanted == found == self._replayed() == seen

    def check(self, client: Client, patience: float) -> None:
        eventually(lambda: self._agreed(client), patience, message="registry, view and replay")
        self._subscription.cancel()

    def figures(self) -> str:
        kinds = Counter(str(event.type) for event in self._events)
        return f"{super().figures()} ({dict(kinds)})"


# -- elections ---------------------------------------------------------------------------------


class OneLeader(Load):
    """Two candidates; never may both say that they lead."""

    def __init__(self, name: str, one: Client, other: Client) -> None:
        super().__init__(name)
        self._pair = [
            one.candidate("chief", "one", ttl=3),
            other.candidate("chief", "other", ttl=3),
        ]
        self.terms: set[int] = set()

    def round(self) -> None:
        first, second = self._pair if self.rounds % 2 else reversed(self._pair)
        before = first.term
        if before is not None and first.is_leader:
            self.terms.add(before.token)
            both = second.is_leader
            after = first.term
            # The first one led all the while only if its term is the same and still ours.
            if both and first.is_leader and after is not None and after.token == before.token:
                raise AssertionError(f"two leaders: {before} and {second.term}")
        self.stopping.wait(0.005)

    def check(self, client: Client, patience: float) -> None:
        eventually(
            lambda: any(c.is_leader for c in self._pair), patience, message="somebody leads again"
        )
        leading = next((c for c in self._pair if c.is_leader), None)
        assert leading is not None
        assert client.leader("chief", timeout=20) in ("one", "other")
        for candidate in self._pair:
            candidate.close()

    def figures(self) -> str:
        return f"{super().figures()} ({len(self.terms)} terms)"


@dataclass
class Fleet:
    """All loads on clients of their own."""

    loads: list[Load]
    counters: list[tuple[list[CountUnderLock], list[Turn]]]
    patience: float = 16.0

    @classmethod
    def over(cls, make: object, prey: bool = True) -> Fleet:
        """Set the loads up; ``make()`` gives a fresh client each time."""
        clients = [make() for _ in range(4)]  # type: ignore[operator]
        turns: list[Turn] = []
        jobs = [CountUnderLock(f"job-{n}", c, "job", turns) for n, c in enumerate(clients[:3])]
        counters = [(jobs, turns)]
        if prey:
            hunted: list[Turn] = []
            more = [
                CountUnderLock(f"prey-{n}", c, "prey", hunted, prey=True)
                for n, c in enumerate(clients[2:])
            ]
            counters.append((more, hunted))
        loads: list[Load] = [worker for workers, _ in counters for worker in workers]
        loads += [
            WriteAndWatch("writes", clients[0], clients[3]),
            SaveAndReload("config", clients[1], clients[3]),
            Registered("registry", clients[2], clients[0]),
            OneLeader("election", clients[1], clients[3]),
        ]
        return cls(loads, counters)

    def start(self) -> None:
        """Start all."""
        for load in self.loads:
            load.start()

    def stop(self) -> None:
        """Stop all; etcd must work again, or they wait for their timeouts."""
        for load in self.loads:
            load.stopping.set()
        for load in self.loads:
            load.stop()

    def check(self, client: Client) -> None:
        """Judge all of them."""
        for load in self.loads:
            load.check(client, self.patience)
        for workers, turns in self.counters:
            check_turns(client, workers, turns)

    def figures(self) -> str:
        """Return what all of them did, a line each."""
        return "\n".join(load.figures() for load in self.loads)
