"""Judges that the fault tests share, each independent of the code under test.

A :class:`Witness` talks to one server on a plain gRPC channel of its own. :class:`WatchLog` (J2)
and :class:`WriteLog` (J3) record what a client saw or did and compare it with the store's history;
:class:`Hygiene` (J8) looks at what a closed client left behind.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

import grpc
import psutil

from etcd_core import Client
from etcd_core.errors import ClosedError, EtcdError, OutcomeUnknown
from etcd_core.keys import prefix_range_end
from etcd_core.testing import EtcdServer, eventually
from etcd_core.watch import Created, Delivery, Ended, Events, Progress
from etcd_core.wire import messages as pb


@dataclass(frozen=True)
class Happened:
    """One event of the store's history."""

    revision: int
    key: bytes
    kind: str
    value: bytes
    create_revision: int

    @classmethod
    def of(cls, event: pb.Event) -> Happened:
        kv = event.kv
        kind = "PUT" if event.type == pb.Event.PUT else "DELETE"
        return cls(kv.mod_revision, kv.key, kind, kv.value, kv.create_revision)


class Witness:
    """A second, undisturbed view on one server, made of gRPC and messages alone."""

    def __init__(self, endpoint: str) -> None:
        self._channel = grpc.insecure_channel(
            urlsplit(endpoint).netloc, options=[("grpc.max_receive_message_length", -1)]
        )

    def __enter__(self) -> Witness:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    def call(self, name: str, request: object, timeout: float = 20.0) -> object:
        """Send one request, waiting for the connection."""
        method = pb.METHODS[name]
        stub = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return stub(request, timeout=timeout, wait_for_ready=True)

    def put(self, key: str, value: str | bytes = "") -> int:
        """Put and return the revision."""
        raw = value.encode() if isinstance(value, str) else value
        return self.call("KV/Put", pb.PutRequest(key=key.encode(), value=raw)).header.revision

    def delete(self, prefix: str) -> int:
        """Delete a prefix and return the revision."""
        request = pb.DeleteRangeRequest(
            key=prefix.encode(), range_end=prefix_range_end(prefix.encode())
        )
        return self.call("KV/DeleteRange", request).header.revision

    def range(self, prefix: str) -> dict[bytes, bytes]:
        """Return the keys and values under a prefix."""
        request = pb.RangeRequest(key=prefix.encode(), range_end=prefix_range_end(prefix.encode()))
        return {kv.key: kv.value for kv in self.call("KV/Range", request).kvs}

    @property
    def revision(self) -> int:
        """The store's revision now."""
        return self.call("KV/Range", pb.RangeRequest(key=b"\0", limit=1)).header.revision

    def compact(self, revision: int) -> None:
        """Compact up to ``revision``."""
        self.call("KV/Compact", pb.CompactionRequest(revision=revision, physical=True))

    def leases(self) -> set[int]:
        """Return the ids of all leases."""
        return {
            lease.ID for lease in self.call("Lease/LeaseLeases", pb.LeaseLeasesRequest()).leases
        }

    def history(self, prefix: str, first: int = 1) -> list[Happened]:
        """Return all events under ``prefix`` from revision ``first`` up to now."""
        last = self.revision
        key = prefix.encode()
        # A marker of our own, so that the end of the history is an event and not a silence.
        create = pb.WatchCreateRequest(
            key=b"\0", range_end=b"\0", start_revision=first, watch_id=1, fragment=False
        )
        marker = self.put(f"witness/{time.monotonic_ns()}")
        method = pb.METHODS["Watch/Watch"]
        call = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(_then_wait(pb.WatchRequest(create_request=create)), timeout=30.0)
        found: list[Happened] = []
        for response in call:
            assert not response.canceled, f"the witness's watch was cancelled: {response}"
            found.extend(Happened.of(event) for event in response.events)
            if found and found[-1].revision >= marker:
                break
        call.cancel()
        return [e for e in found if e.key.startswith(key) and e.revision <= last]


def _then_wait(request: pb.WatchRequest) -> Iterator[pb.WatchRequest]:
    yield request


# -- J2 ----------------------------------------------------------------------------------------


class WatchLog:
    """A sink for :meth:`WatchHub.watch` that keeps every delivery, and judges them (J2).

    Args:
        block: Called for each delivery in the hub's thread, to provoke what a slow sink would.
    """

    def __init__(self, block: Callable[[Delivery], None] = lambda delivery: None) -> None:
        self._changed = threading.Condition()
        self._block = block
        self.deliveries: list[Delivery] = []
        self.at: list[float] = []

    def __call__(self, delivery: Delivery) -> None:
        self._block(delivery)
        with self._changed:
            self.deliveries.append(delivery)
            self.at.append(time.monotonic())
            self._changed.notify_all()

    def _of(self, kind: type[Delivery]) -> list[Delivery]:
        with self._changed:
            return [d for d in self.deliveries if isinstance(d, kind)]

    @property
    def events(self) -> list[Happened]:
        """All events, in the order they came."""
        return [Happened.of(e) for d in self._of(Events) for e in d.events]

    @property
    def created(self) -> list[Created]:
        """Each time the watch was created or resumed."""
        return self._of(Created)

    @property
    def progress(self) -> list[Progress]:
        """The progress notifications."""
        return self._of(Progress)

    @property
    def error(self) -> EtcdError | None:
        """The error that ended the watch, if one did."""
        ended = self._of(Ended)
        assert len(ended) <= 1, f"ended more than once: {ended}"
        return ended[0].error if ended else None

    @property
    def last_revision(self) -> int:
        """The revision of the last event; 0 without one."""
        batches = self._of(Events)
        return batches[-1].revision if batches else 0

    def wait(self, condition: Callable[[WatchLog], object], timeout: float = 20.0) -> None:
        """Wait until ``condition(self)`` is true."""
        deadline = time.monotonic() + timeout
        while not condition(self):
            with self._changed:
                left = deadline - time.monotonic()
                assert left > 0, f"not within {timeout:g} s; so far {self.deliveries[-5:]}"
                self._changed.wait(min(left, 0.1))

    def wait_created(self, times: int = 1, timeout: float = 20.0) -> None:
        """Wait until the watch was created that many times."""
        self.wait(lambda log: len(log.created) >= times, timeout)

    def wait_revision(self, revision: int, timeout: float = 20.0) -> None:
        """Wait until events up to ``revision`` have come."""
        self.wait(lambda log: log.last_revision >= revision, timeout)

    def check(self, history: Sequence[Happened], prev_values: bool = False) -> None:
        """Compare with the store's history of the watched range (W1 to W9)."""
        self._check_order()
        self._check_bookmarks()
        events = self.events
        assert [_short(e) for e in events] == [_short(e) for e in history], "W3 Reliable, W7 Filter"
        for event in events:
            expected = event.kind == "PUT" and event.create_revision == event.revision
            known = any(e.key == event.key for e in history if e.revision < event.revision)
            if expected and known:
                before = [e for e in history if e.key == event.key and e.revision < event.revision]
                assert before[-1].kind == "DELETE", f"W9: created twice without a delete: {event}"
        if prev_values:
            self._check_prev(history)

    def _check_order(self) -> None:
        revisions = [e.revision for e in self.events]
        assert revisions == sorted(revisions), "W1 Ordered"
        counted = Counter((e.revision, e.key) for e in self.events)
        assert not [k for k, n in counted.items() if n > 1], "W2 Unique"
        whole = [{e.kv.mod_revision for e in d.events} for d in self._of(Events)]
        for left, right in itertools.pairwise(whole):
            assert not left & right, f"W4 Atomic: revision {left & right} was split"

    def _check_bookmarks(self) -> None:
        mark = 0
        with self._changed:
            deliveries = list(self.deliveries)
        for delivery in deliveries:
            if isinstance(delivery, Events):
                first = delivery.events[0].kv.mod_revision
                assert first > mark, f"W6 Bookmarkable: {first} after progress {mark}"
            elif isinstance(delivery, Progress):
                mark = max(mark, delivery.revision)

    def _check_prev(self, history: Sequence[Happened]) -> None:
        values: dict[bytes, bytes] = {}
        previous: dict[tuple[int, bytes], bytes | None] = {}
        for event in history:
            previous[event.revision, event.key] = values.get(event.key)
            if event.kind == "PUT":
                values[event.key] = event.value
            else:
                values.pop(event.key, None)
        for delivery in self._of(Events):
            for event in delivery.events:
                if event.HasField("prev_kv"):
                    known = previous[event.kv.mod_revision, event.kv.key]
                    assert event.prev_kv.value == known, "W8 PrevKV"


def _short(event: Happened) -> tuple[int, bytes, str, bytes]:
    return event.revision, event.key, event.kind, event.value


# -- J3 ----------------------------------------------------------------------------------------


@dataclass
class WriteLog:
    """Writes with ids that occur once, by how the client said they ended (J3). Thread-safe.

    Every write of :meth:`attempt` must store the id it is given as the whole value.
    """

    ok: list[str] = field(default_factory=list)
    failed: dict[str, EtcdError] = field(default_factory=dict)
    unknown: dict[str, EtcdError] = field(default_factory=dict)

    @property
    def attempted(self) -> int:
        """How many writes were filed."""
        return len(self.ok) + len(self.failed) + len(self.unknown)

    def attempt(self, unique: str, write: Callable[[bytes], object]) -> EtcdError | None:
        """Run ``write(id)`` and file its end; return the error, if it was one."""
        try:
            write(unique.encode())
        except EtcdError as exc:
            vague = isinstance(exc, OutcomeUnknown) or exc.outcome_unknown
            (self.unknown if vague else self.failed)[unique] = exc
            return exc
        self.ok.append(unique)
        return None

    def check(self, history: Sequence[Happened]) -> None:
        """Compare with the history: applied once, never, or (unknown) at most once."""
        times = Counter(e.value.decode() for e in history if e.kind == "PUT")
        assert [u for u in self.ok if times[u] != 1] == [], "ok: exactly once"
        assert [u for u in self.failed if times[u] != 0] == [], "failed: never"
        assert [u for u in self.unknown if times[u] > 1] == [], "unknown: at most once"
        strangers = set(times) - {*self.ok, *self.failed, *self.unknown}
        assert not strangers, f"nobody wrote {strangers}"


# -- J8 ----------------------------------------------------------------------------------------


class Hygiene:
    """What must be as before once every client is closed: threads, sockets, leases, keys (J8).

    Example:
        >>> with Hygiene(server, prefix="/test/x/"):
        ...     use_and_close_a_client()

    Args:
        servers: Whose connections and leases are looked at; the first that runs is asked.
        prefix: No key may be left under it.
        timeout: Seconds that the last thread or lease may take to go.
    """

    def __init__(self, *servers: EtcdServer, prefix: str = "", timeout: float = 15.0) -> None:
        self._servers = servers
        self._prefix = prefix
        self._timeout = timeout

    def __enter__(self) -> Hygiene:
        self._threads = library_threads()
        self._leases = self._read(Witness.leases)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            self.check()

    def check(self) -> None:
        """Wait until nothing is left.

        Raises:
            AssertionError: Something stayed; the text says what.
        """
        eventually(lambda: not self.leftovers() or self._blame(), self._timeout, 0.05, "hygiene")

    def leftovers(self) -> list[str]:
        """Name what is there and was not before."""
        ports = {urlsplit(server.endpoint).port for server in self._servers}
        open_sockets = [
            f"socket to port {c.raddr.port}"
            for c in psutil.Process().net_connections("tcp")
            if c.raddr and c.raddr.port in ports and c.status == psutil.CONN_ESTABLISHED
        ]
        threads = [f"thread {t.name}" for t in library_threads() - self._threads]
        # Not while a witness of ours is connected: its own socket would be counted.
        leases = [f"lease {lease:x}" for lease in self._read(Witness.leases) - self._leases]
        keys: list[str] = []
        if self._prefix:
            keys = [f"key {key!r}" for key in self._read(lambda w: set(w.range(self._prefix)))]
        return [*open_sockets, *threads, *leases, *keys]

    def _blame(self) -> bool:
        raise AssertionError(f"left behind: {self.leftovers()}")

    def _read(self, question: Callable[[Witness], set]) -> set:
        for server in self._servers:
            if server.alive and not server.paused and server.tls is None and not server.username:
                with Witness(server.endpoint) as witness:
                    return question(witness)
        return set()


def library_threads() -> set[threading.Thread]:
    """Return the threads of the library that run now."""
    return {
        t
        for t in threading.enumerate()
        if t.name.startswith("etcd-") and not t.name.startswith("etcd-test-")
    }


# -- login tokens ------------------------------------------------------------------------------

# A login then costs the server a millisecond, not a tenth of a second of the machine.
CHEAP_LOGINS = "--bcrypt-cost=4"
BRIEF_TOKENS = ("--auth-token-ttl=1", "--log-level=info", CHEAP_LOGINS)


def let_the_token_expire(server: EtcdServer, client: Client) -> None:
    """Wait until a server with :data:`BRIEF_TOKENS` has forgotten the client's login token.

    Its log tells, for a use would renew the token. A server that says nothing is given the time: an
    unused token of 1 s is swept every 0.5 s.
    """
    token = dict(client.scope().engine.channel.metadata(needs_leader=False))["token"]
    at_the_latest = time.monotonic() + 3.2
    eventually(
        lambda: token in server.log.read_text() or time.monotonic() > at_the_latest, interval=0.05
    )


def outcome(call: Callable[[], object]) -> str:
    """Return the name of the error that ``call`` raises, or ``ok``."""
    try:
        call()
    except ClosedError:
        return "ClosedError"
    except EtcdError as exc:
        return type(exc).__name__
    return "ok"
