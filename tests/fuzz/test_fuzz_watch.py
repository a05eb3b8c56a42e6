"""Watch responses in any legal order and fragmentation, and streams cut anywhere: W1 to W11 hold.

A model of a server draws what it sends from a seed (hypothesis would take minutes for each step),
and the hub is driven in the test's own thread, so that a failing example is the same each time. The
real thing is in tests/integration and tests/faults.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkers import Happened, WatchLog
from etcd_core.dispatch import Dispatcher
from etcd_core.keys import prefix_range_end
from etcd_core.mirror import Entry, Mirror, View
from etcd_core.watch import Watch, WatchHub
from etcd_core.wire import messages as pb
from etcd_core.wire.channel import Backoff, CallFailed, StoreClock
from etcd_core.wire.classify import Kind

PREFIXES = (b"a/", b"b/", b"")
BOUNDED = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))

writes = st.lists(
    st.dictionaries(
        st.sampled_from([b"a/1", b"a/2", b"a/3", b"b/1", b"b/2"]),
        st.none() | st.binary(max_size=3),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=12,
)


class Store:
    """The history of a store whose first write is revision 2, as etcd's is."""

    def __init__(self, transactions: list[dict[bytes, bytes | None]]) -> None:
        self.events: list[pb.Event] = []
        self.revision = 1
        alive: dict[bytes, pb.KeyValue] = {}
        for transaction in transactions:
            number = self.revision + 1
            made = [self._event(alive, number, *write) for write in sorted(transaction.items())]
            happened = [event for event in made if event is not None]
            if happened:
                self.revision = number
                self.events += happened

    @staticmethod
    def _event(
        alive: dict[bytes, pb.KeyValue], revision: int, key: bytes, value: bytes | None
    ) -> pb.Event | None:
        if value is None:
            if alive.pop(key, None) is None:
                return None
            return pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=revision))
        old = alive.get(key)
        kv = pb.KeyValue(
            key=key,
            value=value,
            mod_revision=revision,
            create_revision=old.create_revision if old else revision,
            version=old.version + 1 if old else 1,
        )
        alive[key] = kv
        return pb.Event(type=pb.Event.PUT, kv=kv)

    def of(self, prefix: bytes, first: int) -> list[pb.Event]:
        """Return the events under ``prefix`` from revision ``first`` on."""
        return [
            e for e in self.events if e.kv.key.startswith(prefix) and e.kv.mod_revision >= first
        ]

    def view(self, prefix: bytes, revision: int) -> View:
        """Return what stood under ``prefix`` at ``revision``."""
        entries: dict[bytes, Entry] = {}
        for event in self.of(prefix, 0):
            if event.kv.mod_revision > revision:
                break
            entries.pop(event.kv.key, None)
            if event.type == pb.Event.PUT:
                entries[event.kv.key] = Entry.of(event.kv)
        return View(revision, entries)


@dataclass
class Stream:
    """One stream of the model server; ends with a failure after ``budget`` responses."""

    store: Store
    dice: random.Random
    budget: int
    link: object = None
    token_generation: int = 0
    requests: list[pb.WatchRequest] = field(default_factory=list)

    def send(self, request: pb.WatchRequest) -> None:
        self.requests.append(request)

    def cancel(self) -> None:
        """As gRPC's: nothing more comes."""

    def __iter__(self) -> Iterator[pb.WatchResponse]:
        queues = [list(self._answers(r.create_request)) for r in self.requests]
        while queues and self.budget > 0:
            # Responses of one watch keep their order; those of several mix.
            chosen = self.dice.randrange(len(queues))
            yield queues[chosen].pop(0)
            self.budget -= 1
            queues = [queue for queue in queues if queue]
        raise CallFailed(Kind.AMBIGUOUS, "UNAVAILABLE", "cut", None, sent=True)

    def _header(self) -> pb.ResponseHeader:
        # Ahead of the events, as it is while a watch catches up.
        return pb.ResponseHeader(revision=self.store.revision, raft_term=2)

    def _answers(self, create: pb.WatchCreateRequest) -> Iterator[pb.WatchResponse]:
        watch_id, first = create.watch_id, create.start_revision
        yield pb.WatchResponse(header=self._header(), watch_id=watch_id, created=True)
        events = self.store.of(_prefix_of(create), first)
        if first > 2 and self.dice.random() < 0.5:
            # etcd issue 20221: events from before the asked revision.
            known = self.store.of(_prefix_of(create), 0)
            stale = [event for event in known if event.kv.mod_revision < first]
            yield from self._batch(watch_id, stale[-3:])
        by_revision = [
            list(group) for _, group in itertools.groupby(events, key=lambda e: e.kv.mod_revision)
        ]
        while by_revision:
            size = self.dice.randint(1, len(by_revision))
            batch, by_revision = by_revision[:size], by_revision[size:]
            yield from self._batch(watch_id, [event for group in batch for event in group])
            if self.dice.random() < 0.5:
                done = batch[-1][0].kv.mod_revision
                header = pb.ResponseHeader(revision=done, raft_term=2)
                yield pb.WatchResponse(header=header, watch_id=watch_id)
        yield pb.WatchResponse(header=self._header(), watch_id=watch_id)

    def _batch(self, watch_id: int, events: list[pb.Event]) -> Iterator[pb.WatchResponse]:
        """Split one answer into fragments, at any event."""
        while events:
            size = self.dice.randint(1, len(events))
            part, events = events[:size], events[size:]
            yield pb.WatchResponse(
                header=self._header(), watch_id=watch_id, events=part, fragment=bool(events)
            )


def _prefix_of(create: pb.WatchCreateRequest) -> bytes:
    return b"" if create.key == b"\0" else create.key


class Wire:
    """What the hub needs of a channel, over the model server."""

    def __init__(self, store: Store, dice: random.Random) -> None:
        self.store = StoreClock(lambda notice: None)
        self.on_suspect = None
        self.logs_in = False
        self.endpoints = SimpleNamespace(rotate=lambda link: None)
        self.budget = 0
        self._model = store
        self._dice = dice

    def open(self, rpc: object) -> Stream:
        return Stream(self._model, self._dice, self.budget)


def _serve(hub: WatchHub, wire: Wire, budget: int) -> None:
    wire.budget = budget
    try:
        hub._serve(Backoff())
    except CallFailed:
        return


@BOUNDED
@given(
    transactions=writes,
    seed=st.integers(0, 2**32),
    budgets=st.lists(st.integers(1, 30), max_size=4),
)
def test_nothing_is_lost_doubled_or_split(
    transactions: list[dict[bytes, bytes | None]], seed: int, budgets: list[int]
) -> None:
    store = Store(transactions)
    dice = random.Random(seed)
    wire = Wire(store, dice)
    hub = WatchHub(wire)  # type: ignore[arg-type]
    hub._thread = threading.current_thread()  # the test serves the streams
    engine = SimpleNamespace(hub=hub, channel=wire, dispatcher=Dispatcher())
    logs: list[tuple[bytes, int, WatchLog, Watch]] = []
    mirrors: list[tuple[bytes, Mirror]] = []
    for prefix in PREFIXES:
        first = dice.randint(1, store.revision + 1)
        key, end = prefix or b"\0", prefix_range_end(prefix)
        log = WatchLog()
        watch = hub.watch(key, log, range_end=end, start_revision=first)
        logs.append((prefix, first, log, watch))
        mirror = Mirror(engine, key, end, "fuzz")  # type: ignore[arg-type]
        mirror.start(since=store.view(prefix, first - 1))
        mirrors.append((prefix, mirror))

    for budget in budgets:
        _serve(hub, wire, budget)
    _serve(hub, wire, 10_000)

    for prefix, first, log, watch in logs:
        assert log.error is None
        log.check([Happened.of(event) for event in store.of(prefix, first)])
        assert watch.next_revision >= store.revision + 1
    for prefix, mirror in mirrors:
        assert dict(mirror.view.entries) == dict(store.view(prefix, store.revision).entries)
        assert mirror.view.revision == store.revision
    hub.close(0.1)
    engine.dispatcher.stop(1.0)


@BOUNDED
@given(
    responses=st.lists(
        st.builds(
            pb.WatchResponse,
            watch_id=st.integers(-1, 4),
            created=st.booleans(),
            canceled=st.booleans(),
            compact_revision=st.integers(0, 9),
            cancel_reason=st.sampled_from(["", "etcdserver: no leader", "rpc error: code = X"]),
            fragment=st.booleans(),
            header=st.builds(pb.ResponseHeader, revision=st.integers(0, 20)),
            events=st.lists(
                st.builds(
                    pb.Event,
                    type=st.sampled_from([pb.Event.PUT, pb.Event.DELETE]),
                    kv=st.builds(pb.KeyValue, key=st.just(b"a/1"), mod_revision=st.integers(0, 20)),
                ),
                max_size=3,
            ),
        ),
        max_size=12,
    )
)
def test_nonsense_ends_in_an_error_or_a_restart_and_never_in_a_crash(
    responses: list[pb.WatchResponse],
) -> None:
    from etcd_core.watch import _Restart

    class Nonsense(Stream):
        def __iter__(self) -> Iterator[pb.WatchResponse]:
            yield from responses

    dice = random.Random(0)
    wire = Wire(Store([]), dice)
    wire.open = lambda rpc: Nonsense(Store([]), dice, 0)  # type: ignore[method-assign]
    wire.pause = lambda seconds: None  # type: ignore[attr-defined]
    wire.unary = lambda *args, **options: pb.RangeResponse()  # type: ignore[attr-defined]
    hub = WatchHub(wire)  # type: ignore[arg-type]
    hub._thread = threading.current_thread()
    log = WatchLog()
    hub.watch(b"a/", log, range_end=b"a0", start_revision=3)
    with contextlib.suppress(_Restart):
        hub._serve(Backoff())
    hub.close(0.1)
    revisions = [event.revision for event in log.events]
    assert all(revision >= 3 for revision in revisions), "W11: older than asked for"
    assert log.error is not None, "W10: the end is told"
