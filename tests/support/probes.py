"""Every feature in use, one class each, for the faults that all of them must stand.

:class:`Together` uses several at the same time. Run as a program this file does so too, and is what
a test stops with SIGSTOP:

    python probes.py ENDPOINT PREFIX FEATURE...
"""

from __future__ import annotations

import contextvars
import json
import queue
import signal
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from etcd_core import (
    Client,
    Config,
    ConnectionFailed,
    Descriptor,
    EtcdError,
    NoSpace,
    RequestTimeout,
    ServiceEvent,
    checkpoint,
    current_term,
    exclusive,
    leader_only,
    signals,
)
from etcd_core.errors import ClusterReset
from etcd_core.resolver import Resolver
from etcd_core.testing import RpcCounter, eventually

PATIENCE = 30.0
_SHORT = 0.3
_LOSSES = (signals.lock_lost, signals.leadership_lost, signals.registration_lost)


@dataclass(frozen=True)
class Place:
    """Where a probe works.

    Attributes:
        endpoint: What the probe is given.
        direct: The way of all others, on which there is no fault.
        prefix: The key prefix.
        ttl: Seconds of everything that has a lease.
        password: Of the user ``root``, where authentication is on.
    """

    endpoint: str
    direct: str
    prefix: str
    ttl: int = 2
    password: str | None = None

    def config(self, endpoint: str) -> Config:
        """Return what a client of ``endpoint`` is made with."""
        return Config(
            [endpoint],
            prefix=self.prefix,
            username=self.password and "root",
            password=self.password,
        )


class Probe(ABC):
    """One feature in use by one process.

    Attributes:
        client: The process's own client.
        others: Somebody else's, on a way without faults.
        losses: What was told to be lost so far.
        skips: Why tasks were skipped so far.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.ttl = place.ttl
        self.counter = RpcCounter()
        self.losses: list[str] = []
        self.skips: list[str] = []
        self.turn = 0
        self._stack = ExitStack()
        config = place.config(place.endpoint)
        self.client = self._stack.enter_context(Client(config, interceptors=[self.counter]))
        self.others = self._stack.enter_context(Client(place.config(place.direct)))
        # Not the receivers of the whole process: other features are in use beside this one.
        for client in (self.client, self.others):
            client.announcer.follow(self._hear)

    def _hear(self, signal: object, sender: object, payload: Mapping[str, object]) -> None:
        if signal in _LOSSES:
            self.losses.append(str(payload["reason"]))
        elif signal is signals.task_skipped:
            self.skips.append(str(payload["reason"]))

    def close(self) -> None:
        """End it all."""
        self._stack.close()

    def hears_of_losses(self, count: int) -> None:
        """Wait for the signals of losses: another thread sends them than the one that knows."""
        eventually(lambda: len(self.losses) >= count, PATIENCE)

    def next(self) -> int:
        """Return a number that was not there before."""
        self.turn += 1
        return self.turn

    @abstractmethod
    def begin(self) -> None:
        """Begin to use the feature."""

    @abstractmethod
    def works(self) -> None:
        """Assert that it does its job, and that nothing was lost since it began or recovered."""

    @abstractmethod
    def unreachable(self) -> None:
        """Assert what is promised while no endpoint answers; ends when all leases are over."""

    @abstractmethod
    def no_space(self) -> None:
        """Assert what is promised while etcd refuses to write."""

    @abstractmethod
    def recovers(self) -> None:
        """Assert that it works again after an outage, a reset or a pause longer than the TTL."""

    def after_reset(self) -> None:
        """Assert what is promised when etcd came back empty."""
        self.recovers()

    def at_once(self) -> None:  # noqa: B027
        """Assert what holds in the first statement after such a pause; not all are promised it."""

    def after_pause(self) -> None:
        """Assert what is promised when this process was stopped for longer than the TTL."""
        self.recovers()

    @staticmethod
    def meanwhile(others: Client) -> None:
        """Do what others do while this process is stopped."""
        others.raw.put(f"{others.prefix}/meanwhile", "1")

    def lasts(self, holds: Callable[[], object]) -> None:
        """Assert that ``holds()`` is true for longer than the TTL."""
        ends = time.monotonic() + self.ttl * 1.3 + 0.7
        while time.monotonic() < ends:
            assert holds()
            time.sleep(0.05)


def refuses(call: Callable[[], object], *errors: type[BaseException]) -> None:
    """Assert that ``call()`` raises one of ``errors``, soon."""
    began = time.monotonic()
    try:
        call()
    except errors:
        assert time.monotonic() - began < 15
        return
    raise AssertionError(f"not refused with {errors}")


_AWAY = (ConnectionFailed, RequestTimeout)


class Configuration(Probe):
    """``ConfigSource``: load, save, watch."""

    def begin(self) -> None:
        self.source = self.client.config_source("app")
        self.source.save({"a": 0})
        self.seen = [self.source.load()]
        self.source.watch(self.seen.append)
        eventually(lambda: self.seen[1:])

    def works(self) -> None:
        told, own = self.next(), self.next()
        self.others.config_source("app").save({"a": told}, timeout=20)
        eventually(lambda: self.seen[-1].get("a") == told, PATIENCE)
        self.source.save({"a": own}, timeout=20)
        assert self.source.load(timeout=20)["a"] == own
        eventually(lambda: self.seen[-1].get("a") == own, PATIENCE)
        assert not self.losses

    def unreachable(self) -> None:
        count = len(self.seen)
        refuses(lambda: self.source.load(timeout=_SHORT), *_AWAY)
        refuses(lambda: self.source.save({"a": -1}, timeout=_SHORT), EtcdError)
        assert len(self.seen) == count

    def no_space(self) -> None:
        before = self.source.load()
        refuses(lambda: self.source.save({"a": -1}), NoSpace)
        refuses(lambda: self.source.update({"b": -1}), NoSpace)
        assert dict(self.source.load()) == dict(before) == dict(self.seen[-1])

    def recovers(self) -> None:
        self.works()
        assert all(snapshot.exists for snapshot in self.seen), "never told to be empty"

    def after_reset(self) -> None:
        eventually(lambda: self.seen[-1].cause == "reset", PATIENCE)
        assert not self.seen[-1].exists
        self.works()

    @staticmethod
    def meanwhile(others: Client) -> None:
        for number in (97, 98, 99):
            others.config_source("app").save({"a": number})

    def after_pause(self) -> None:
        eventually(lambda: self.seen[-1].get("a") == 99, PATIENCE)
        self.recovers()


class Registered(Probe):
    """``client.register``."""

    def begin(self) -> None:
        info = Descriptor(name="probe", id="p-1", address="h:1")
        self.registration = self.client.register(info, self.ttl)

    def works(self) -> None:
        self.registration.update(metadata={"turn": str(self.next())}, timeout=20)
        assert self.others.discover("probe") == [self.registration.info]
        assert self.registration.registered
        assert not self.losses

    def unreachable(self) -> None:
        other = Descriptor(name="probe", id="p-2", address="h:2")
        refuses(lambda: self.client.register(other, timeout=_SHORT), *_AWAY)
        eventually(lambda: not self.registration.registered, PATIENCE)
        eventually(lambda: self.others.discover("probe") == [], PATIENCE)

    def no_space(self) -> None:
        self.lasts(lambda: self.registration.registered)
        refuses(lambda: self.registration.update(metadata={"turn": "-1"}), NoSpace)
        other = Descriptor(name="probe", id="p-2", address="h:2")
        refuses(lambda: self.client.register(other), NoSpace)
        assert self.others.discover("probe") == [self.registration.info]
        self.registration.deregister()
        assert self.others.discover("probe") == []
        self.turn = -1

    def recovers(self) -> None:
        if self.turn == -1:
            self.begin()
        else:
            self.hears_of_losses(1)
            eventually(lambda: self.registration.registered, PATIENCE)
        self.losses.clear()
        self.works()


class Discovery(Probe):
    """``discover``, ``services`` and ``watch_service``."""

    def begin(self) -> None:
        self.stays = self.others.register(Descriptor(name="peers", id="stays", address="h:1"), 60)
        self.events: list[ServiceEvent] = []
        self.view = self.client.services("peers")
        self.client.watch_service("peers", self.events.append)
        eventually(lambda: self.replayed() == ["stays"])

    def replayed(self) -> list[str]:
        """Return who is there by the events alone."""
        there: dict[str, str] = {}
        for event in list(self.events):
            if str(event.type) == "removed":
                del there[event.info.id]
            else:
                there[event.info.id] = event.info.address
        return sorted(there)

    def agree(self, *ids: str) -> None:
        """Wait until the view and the events show ``ids``."""
        eventually(lambda: [info.id for info in self.view.instances] == [*ids], PATIENCE)
        eventually(lambda: self.replayed() == [*ids], PATIENCE)

    def works(self) -> None:
        name = f"n{self.next()}"
        with self.others.register(Descriptor(name="peers", id=name, address="h:2"), 60):
            self.agree(name, "stays")
            assert len(self.client.discover("peers", timeout=20)) == 2
        self.agree("stays")

    def unreachable(self) -> None:
        refuses(lambda: self.client.discover("peers", timeout=_SHORT), *_AWAY)
        eventually(lambda: self.view.stale, PATIENCE)
        assert [info.id for info in self.view.instances] == ["stays"]

    def no_space(self) -> None:
        assert [info.id for info in self.client.discover("peers")] == ["stays"]
        self.stays.deregister()
        self.agree()

    def recovers(self) -> None:
        if not self.stays.registered:
            self.stays = self.others.register(self.stays.info, 60)
        self.works()
        assert not self.view.stale

    @staticmethod
    def meanwhile(others: Client) -> None:
        others.register(Descriptor(name="peers", id="late", address="h:3"), 60)

    def after_pause(self) -> None:
        # What the process itself keeps registered is its own fault's matter, not discovery's.
        eventually(lambda: {"late", "stays"} <= set(self.replayed()), PATIENCE)
        eventually(lambda: [i.id for i in self.view.instances] == ["late", "stays"], PATIENCE)

    def after_reset(self) -> None:
        eventually(lambda: self.view.revision > 0 and self.stays.registered, PATIENCE)
        self.agree("stays")
        self.works()


class Locked(Probe):
    """``client.lock``."""

    def begin(self) -> None:
        self.lock = self.client.lock("probe", self.ttl, timeout=20)

    def works(self) -> None:
        assert self.lock.held
        assert self.others.try_lock("probe") is None
        ours, _ = self.client.raw.transaction(compare=[self.lock.guard()], success=[], failure=[])
        assert ours
        assert self.lock.unlock(timeout=20)
        self.begin()
        assert not self.losses

    def unreachable(self) -> None:
        # While nobody else can have it.
        assert self.lock.held
        refuses(lambda: self.client.try_lock("other", timeout=_SHORT), *_AWAY)
        assert self.lock.done.wait(PATIENCE)
        assert self.lock.lost_reason == "expired"

    def no_space(self) -> None:
        self.lasts(lambda: self.lock.held)
        refuses(lambda: self.client.lock("other", timeout=1), NoSpace)
        refuses(lambda: self.client.try_lock("other"), NoSpace)
        assert self.lock.unlock()
        assert self.others.raw.get(self.lock.etcd_key)[0] is None

    def recovers(self) -> None:
        assert self.lock.done.wait(PATIENCE)
        assert not self.lock.held
        self.hears_of_losses(1 if self.lock.lost_reason else 0)
        before = self.lock
        self.begin()
        self.losses.clear()
        self.works()
        assert before.unlock(timeout=20) is False

    def at_once(self) -> None:
        assert not self.lock.held

    def after_pause(self) -> None:
        ours, _ = self.client.raw.transaction(compare=[self.lock.guard()], success=[], failure=[])
        assert not ours
        self.recovers()


class Elected(Probe):
    """``client.campaign``, ``candidate`` and ``leader``."""

    def begin(self) -> None:
        self.candidate = self.client.candidate("chief", "me", self.ttl)
        self._campaign()
        assert self.candidate.wait(PATIENCE)
        self.first = self.candidate.term

    def _campaign(self) -> None:
        self.election = self.client.campaign("boss", "me", self.ttl, timeout=20)

    def works(self) -> None:
        value = f"me-{self.next()}"
        self.election.proclaim(value, timeout=20)
        assert self.others.leader("boss") == value
        assert self.others.leader("chief") == "me"
        assert self.election.is_leader
        assert self.candidate.is_leader
        assert not self.losses

    def unreachable(self) -> None:
        refuses(lambda: self.client.leader("boss", timeout=_SHORT), *_AWAY)
        assert self.election.done.wait(PATIENCE)
        eventually(lambda: not self.candidate.is_leader, PATIENCE)
        assert not self.election.is_leader

    def no_space(self) -> None:
        self.lasts(lambda: self.election.is_leader and self.candidate.is_leader)
        refuses(lambda: self.election.proclaim("nothing"), NoSpace)
        refuses(lambda: self.client.campaign("other", "me", timeout=1), NoSpace)
        self.election.resign()
        self.candidate.close()
        assert self.others.leader("boss") is None
        assert self.others.leader("chief") is None
        self.candidate = self.client.candidate("chief", "me", self.ttl)

    def recovers(self) -> None:
        assert self.election.done.wait(PATIENCE)
        assert not self.election.is_leader
        self.hears_of_losses(2)
        self._campaign()
        assert self.candidate.wait(PATIENCE)
        eventually(lambda: self.others.leader("chief") == "me", PATIENCE)
        self.losses.clear()
        self.works()

    def at_once(self) -> None:
        assert not self.election.is_leader
        assert self.first.remaining() <= 0
        # A candidate's thread may be awake before this one, and have won anew.
        again = self.candidate.term
        assert again is None or again.token > self.first.token


class LeaderOnly(Probe):
    """``leader_only``: one run that lasts, and others."""

    def begin(self) -> None:
        guard = leader_only("job", client=self.client, ttl=self.ttl)
        self.task = guard(lambda: current_term().token)
        self._enter()

    def _enter(self) -> None:
        self.run = ExitStack()
        self._stack.push(self.run)
        guard = leader_only("job", client=self.client, ttl=self.ttl)
        self.term = self.run.enter_context(guard)

    def works(self) -> None:
        assert self.task() == self.term.token
        assert checkpoint()
        assert self.others.leader("job") is not None
        ours, _ = self.client.raw.transaction(compare=[self.term.guard()], success=[], failure=[])
        assert ours
        assert not self.losses
        assert not self.skips

    def unreachable(self) -> None:
        assert self.term.lost.wait(PATIENCE)
        assert not checkpoint()
        self.run.close()
        eventually(lambda: self.task() is None and self.skips[-1:] == ["unreachable"], PATIENCE)

    def no_space(self) -> None:
        self.lasts(lambda: checkpoint() and self.task() == self.term.token)
        new = leader_only("other", client=self.client)(lambda: 1)
        refuses(new, NoSpace)
        assert not self.skips
        refuses(leader_only("other", client=self.client, otherwise="raise")(lambda: 1), NoSpace)

    def recovers(self) -> None:
        if self.term.lost.is_set():
            self.hears_of_losses(1)
            eventually(self.task, PATIENCE)
            self._enter()
        self.losses.clear()
        self.skips.clear()
        self.works()

    def after_reset(self) -> None:
        assert self.term.lost.wait(PATIENCE)
        assert not checkpoint()
        self.run.close()
        self.recovers()

    def at_once(self) -> None:
        assert not checkpoint()

    def after_pause(self) -> None:
        ours, _ = self.client.raw.transaction(compare=[self.term.guard()], success=[], failure=[])
        assert not ours
        self.after_reset()


class Exclusive(Probe):
    """``exclusive``: one run that lasts, and others."""

    def begin(self) -> None:
        self.task = exclusive("job", client=self.client, ttl=self.ttl)(lambda: current_term().token)
        self.rival = exclusive("long", client=self.others, ttl=self.ttl)(lambda: 1)
        self._enter()

    def _enter(self) -> None:
        self.run = ExitStack()
        self._stack.push(self.run)
        guard = exclusive("long", client=self.client, ttl=self.ttl, otherwise="wait", wait=20)
        self.term = self.run.enter_context(guard)

    def works(self) -> None:
        assert self.task()
        assert checkpoint()
        self.skips.clear()
        assert self.rival() is None
        assert self.skips == ["locked"]
        assert not self.losses

    def unreachable(self) -> None:
        assert self.term.lost.wait(PATIENCE)
        self.hears_of_losses(1)
        assert not checkpoint()
        assert self.task() is None
        assert self.skips[-1] == "unreachable"

    def no_space(self) -> None:
        self.lasts(checkpoint)
        self.skips.clear()
        refuses(self.task, NoSpace)
        assert not self.skips
        refuses(exclusive("job", client=self.client, otherwise="raise")(lambda: 1), NoSpace)
        self.run.close()
        assert not list(self.others.raw.get_prefix(f"{self.client.prefix}/locks/"))

    def recovers(self) -> None:
        self.run.close()
        self._enter()
        self.losses.clear()
        self.works()

    def after_reset(self) -> None:
        assert self.term.lost.wait(PATIENCE)
        self.hears_of_losses(1)
        assert not checkpoint()
        self.recovers()

    def at_once(self) -> None:
        assert not checkpoint()

    def after_pause(self) -> None:
        ours, _ = self.client.raw.transaction(compare=[self.term.guard()], success=[], failure=[])
        assert not ours
        self.after_reset()


class Raw(Probe):
    """``client.raw``: put, get, delete, watch."""

    def begin(self) -> None:
        self.key = f"{self.place.prefix}/raw"
        self.told: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.raw = self.client.raw
        self.raw.put(self.key, "0")
        self._watch()

    def _watch(self) -> None:
        self.raw.add_watch_callback(self.key, self.told.put)

    def arrives(self, *values: str) -> None:
        """Assert that exactly these values come next."""
        found: list[str] = []
        while len(found) < len(values):
            response = self.told.get(timeout=PATIENCE)
            assert not isinstance(response, Exception), response
            found += [event.value.decode() for event in response.events]  # type: ignore[attr-defined]
        assert found == [*values]

    def works(self) -> None:
        value = f"v{self.next()}"
        self.raw.put(self.key, value)
        assert self.raw.get(self.key)[0] == value.encode()
        self.arrives(value)

    def unreachable(self) -> None:
        from etcd3 import Etcd3Exception

        calls = (lambda: self.raw.get(self.key), lambda: self.raw.put(self.key, "no"))
        # Each takes the client's whole timeout.
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda call: refuses(call, Etcd3Exception), calls))
        for value in ("missed-1", "missed-2"):
            self.others.raw.put(self.key, value)

    def no_space(self) -> None:
        import grpc

        refuses(lambda: self.raw.put(self.key, "no"), grpc.RpcError)
        assert self.raw.get(self.key)[0] is not None
        assert self.raw.delete(self.key)
        self.arrives("")

    def recovers(self) -> None:
        if self.raw.get(self.key)[0] == b"missed-2":
            self.arrives("missed-1", "missed-2")
        self.works()

    @staticmethod
    def meanwhile(others: Client) -> None:
        for value in ("missed-1", "missed-2"):
            others.raw.put(f"{others.prefix}/raw", value)

    def after_reset(self) -> None:
        assert isinstance(self.told.get(timeout=PATIENCE), ClusterReset)
        self._watch()
        eventually(lambda: self.client.scope().engine.hub.count == 1)
        self.raw.put(self.key, "again")
        # The new watch begins now, so whether it tells of this one is a matter of moments.
        eventually(lambda: self._drained("again"), PATIENCE)
        self.works()

    def _drained(self, value: str) -> bool:
        self.raw.put(self.key, value)
        with suppress(queue.Empty):
            self.told.get(timeout=0.3)
            while True:
                self.told.get(timeout=0.3)
        return True


class Resolving(Probe):
    """``Resolver`` on a view."""

    def begin(self) -> None:
        self.stays = self.others.register(Descriptor(name="pay", id="stays", address="h:1"), 60)
        self.view = self.client.services("pay")
        self.resolver = Resolver(self.view)
        assert self.resolver.pick().id == "stays"

    def picks(self) -> set[str]:
        """Return who is picked now."""
        return {self.resolver.pick().id for _ in range(4)}

    def works(self) -> None:
        name = f"n{self.next()}"
        with self.others.register(Descriptor(name="pay", id=name, address="h:2"), 60):
            eventually(lambda: self.picks() == {"stays", name}, PATIENCE)
        eventually(lambda: self.picks() == {"stays"}, PATIENCE)

    def unreachable(self) -> None:
        eventually(lambda: self.view.stale, PATIENCE)
        assert self.picks() == {"stays"}

    def no_space(self) -> None:
        assert self.picks() == {"stays"}

    def recovers(self) -> None:
        self.works()

    def after_reset(self) -> None:
        # The last one known is picked while the registry is empty, then what registers anew.
        ends = time.monotonic() + 1.0
        while time.monotonic() < ends:
            assert self.picks() == {"stays"}
        eventually(lambda: self.stays.registered, PATIENCE)
        self.works()

    @staticmethod
    def meanwhile(others: Client) -> None:
        others.register(Descriptor(name="pay", id="late", address="h:3"), 60)

    def after_pause(self) -> None:
        eventually(lambda: self.picks() == {"late", "stays"}, PATIENCE)


class Settings(Probe):
    """Live Dynaconf settings."""

    def begin(self) -> None:
        from dynaconf import Dynaconf

        import dynaconf_etcd

        self.others.config_source("app").save({"a": 0, "kept": 1})
        config = self.client.config
        table = {
            "endpoints": list(config.endpoints),
            "prefix": config.prefix,
            "username": config.username,
            "password": config.password,
            "name": "app",
        }
        self.settings = Dynaconf(
            loaders=["dynaconf_etcd.loader"],
            etcd_for_dynaconf={name: value for name, value in table.items() if value is not None},
        )
        assert self.settings.A == 0
        self._stack.callback(dynaconf_etcd.close, self.settings)
        eventually(lambda: not self.status.stale)

    @property
    def status(self) -> object:
        """Return what dynaconf_etcd says."""
        import dynaconf_etcd

        return dynaconf_etcd.status(self.settings)

    def works(self) -> None:
        import dynaconf_etcd

        number = self.next()
        self.others.config_source("app").update({"a": number}, timeout=20)
        eventually(lambda: number == self.settings.A, PATIENCE)
        dynaconf_etcd.write(self.settings, {"b": number}, timeout=20)
        assert number == self.settings.B
        assert self.settings.KEPT == 1

    def unreachable(self) -> None:
        import dynaconf_etcd

        before = self.settings.A
        eventually(lambda: self.status.stale, PATIENCE)
        assert before == self.settings.A
        self.settings.reload()
        assert before == self.settings.A
        refuses(lambda: dynaconf_etcd.write(self.settings, {"b": -1}, timeout=_SHORT), EtcdError)

    def no_space(self) -> None:
        import dynaconf_etcd

        before = self.settings.A
        refuses(lambda: dynaconf_etcd.write(self.settings, {"b": -1}), NoSpace)
        assert before == self.settings.A
        assert "B" not in self.settings or self.settings.B != -1
        # A deletion needs no space, and is told.
        self.others.raw.delete(f"{self.client.prefix}/config/app/a")
        eventually(lambda: "A" not in self.settings, PATIENCE)

    def recovers(self) -> None:
        self.works()
        eventually(lambda: not self.status.stale, PATIENCE)

    def after_reset(self) -> None:
        before = self.settings.A
        held = eventually(lambda: self.status.held, PATIENCE)
        assert "reset" in held
        assert before == self.settings.A
        self.others.config_source("app").save({"a": -7, "kept": 1}, timeout=20)
        eventually(lambda: self.settings.A == -7, PATIENCE)
        self.recovers()

    @staticmethod
    def meanwhile(others: Client) -> None:
        for number in (97, 98, 99):
            others.config_source("app").update({"a": number})

    def after_pause(self) -> None:
        eventually(lambda: self.settings.A == 99, PATIENCE)
        self.recovers()


class Hosted(Probe):
    """A Flask application under gunicorn, registered while it serves."""

    def begin(self) -> None:
        self._serve()

    def _serve(self) -> None:
        from serving import ServerProcess, free_port

        self.port = free_port()
        registry = _Seen(self.place.endpoint, self.place.prefix, "shop")
        command = ["-m", "gunicorn", "-b", f"127.0.0.1:{self.port}", "hosted_site:app"]
        self.server = ServerProcess(
            command,
            registry,  # type: ignore[arg-type]
            PYTHONPATH=str(Path(__file__).parent),
            TEST_PORT=str(self.port),
            TEST_TTL=str(self.ttl),
            TEST_PASSWORD=self.place.password or "",
        )
        self._stack.callback(self.server.close)
        self.server.wait_serving()
        self._appears()

    def _appears(self) -> None:
        eventually(lambda: self.addresses() == [self.address], PATIENCE, message=self.server.output)

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"127.0.0.1:{self.port}"

    def addresses(self) -> list[str]:
        """Return what others find."""
        return [info.address for info in self.others.discover("shop", timeout=20)]

    def answers(self) -> bool:
        """Serve a request."""
        return self.server.get("/") == "ok"

    def works(self) -> None:
        assert self.answers()
        # Somebody deletes the entry: it comes back.
        assert self.addresses() == [self.address]
        self.others.raw.delete_prefix(f"{self.place.prefix}/services/shop/")
        self._appears()

    def unreachable(self) -> None:
        eventually(lambda: self.addresses() == [], PATIENCE)
        assert self.answers()

    def no_space(self) -> None:
        self.lasts(lambda: self.addresses() == [self.address])
        assert self.answers()
        assert self.server.stop() == 0
        assert self.addresses() == []

    def recovers(self) -> None:
        if self.server.process.poll() is not None:
            self._serve()
        self._appears()
        self.works()

    def stop(self) -> None:
        """Stop the whole server, as a suspended machine is."""
        self.server.signal_group(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the stop."""
        self.server.signal_group(signal.SIGCONT)

    def jump(self, seconds: float) -> None:
        """Set the wall clock, as far as the application's Python can see."""
        assert self.server.get(f"/jump/{seconds:.0f}") == "ok"


@dataclass(frozen=True)
class _Seen:
    """What a server process is told of the registry."""

    endpoint: str
    prefix: str
    name: str


FEATURES: dict[str, type[Probe]] = {
    "configuration": Configuration,
    "registration": Registered,
    "discovery": Discovery,
    "lock": Locked,
    "election": Elected,
    "leader_only": LeaderOnly,
    "exclusive": Exclusive,
    "dynaconf": Settings,
    "hosting": Hosted,
    "resolver": Resolving,
    "raw": Raw,
}


class Together:
    """Probes that are in use at the same time: one fault is the fault of all of them.

    Each is in a context of its own, as if it were the only one in its thread, and below ``prefix``
    by its name. One that fails does no more, and the others go on.

    Attributes:
        failures: The traceback, by the feature.
    """

    def __init__(
        self, features: Iterable[str], endpoint: str, direct: str, prefix: str, **options: object
    ) -> None:
        self.failures: dict[str, str] = {}
        self._probes = {
            feature: FEATURES[feature](
                Place(endpoint, direct, f"{prefix}/{feature}", **options)  # type: ignore[arg-type]
            )
            for feature in features
        }
        self._contexts = {feature: contextvars.Context() for feature in self._probes}
        self._pool = ThreadPoolExecutor(len(self._probes) or 1, "probe")

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        list(self._pool.map(partial(self._do, lambda probe: probe.close()), self._probes))
        self._pool.shutdown()

    def __iter__(self) -> Iterator[Probe]:
        return iter(self._probes.values())

    def each(self, step: Callable[[Probe], object]) -> None:
        """Have all do ``step``, at the same time."""
        list(self._pool.map(partial(self._do, step), self._unharmed()))

    def in_turn(self, step: Callable[[Probe], object]) -> None:
        """Have all do ``step`` in this thread, one after the other."""
        for feature in self._unharmed():
            self._do(step, feature)

    def _unharmed(self) -> list[str]:
        return [feature for feature in self._probes if feature not in self.failures]

    def _do(self, step: Callable[[Probe], object], feature: str) -> None:
        try:
            self._contexts[feature].run(step, self._probes[feature])
        except Exception:
            self.failures.setdefault(feature, traceback.format_exc())


class WallClock:
    """The wall clock as Python code sees it, set by some seconds while the block runs.

    gRPC's own code sees the true one: it turns timeouts into wall-clock deadlines for a core that
    reads the real clock, so a real jump moves both.
    """

    def __init__(self) -> None:
        self._true = time.time
        self._by = 0.0

    def jump(self, seconds: float) -> None:
        """Set it, ``seconds`` off the true one."""
        self._by = seconds
        time.time = self._shown

    def restore(self) -> None:
        """Show the true one."""
        time.time = self._true

    def _shown(self) -> float:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        return self._true() + (0.0 if caller.partition(".")[0] == "grpc" else self._by)


def main() -> None:
    """Begin, say so, wait for the word that the pause is over, and say what failed whom."""
    endpoint, prefix, *features = sys.argv[1:]
    with Together(features, endpoint, endpoint, prefix) as probes:
        probes.in_turn(lambda probe: probe.begin())
        print("ready", flush=True)
        sys.stdin.readline()
        probes.in_turn(lambda probe: probe.at_once())
        probes.each(lambda probe: probe.after_pause())
    print(json.dumps(probes.failures), flush=True)


if __name__ == "__main__":
    main()
