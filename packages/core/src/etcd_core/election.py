"""Leader election: the same queue as the lock, with the identity as the value of the key.

Recipe over :mod:`ownership`; observers stand on :mod:`mirror`. A background candidacy runs in a
thread ``etcd-candidate-<key>`` of its own.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from blinker import Signal
from typing_extensions import Self

from . import forking, signals
from .config import UNSET, Timeout
from .dispatch import Strand
from .engine import Scope
from .errors import (
    CampaignTimeout,
    ClosedError,
    EtcdError,
    InvalidArgument,
    LeaseLost,
    NotLeader,
    RequestTimeout,
)
from .keys import election_prefix, is_queue_key, prefix_range_end, require_name
from .lease import normalise_ttl
from .mirror import Change, Entry, Mirror
from .ownership import Compare, Contender, Ownership, TurnTimeout, full_queue, queue_range
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import OWN_TXN, RANGE

_log = logging.getLogger("etcd_core.election")

DEFAULT_TTL = 15.0
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Term:
    """One leadership, as the code that runs under it sees it.

    Attributes:
        name: The election's name.
        identity: Who leads: this process.
        token: The fencing token; grows with every term of the same name.
        lost: Set when the leadership was lost or given up.
        remaining: Returns the seconds the leadership lasts at least, even without etcd.
        guard: Returns the condition "still leader" for a transaction of ``client.raw``.
    """

    name: str
    identity: str
    token: int
    lost: threading.Event
    remaining: Callable[[], float]
    guard: Callable[[], Compare]


class Election:
    """A won election. Safe to use from any thread; a context manager that resigns on leaving.

    Leadership ends here before etcd can give it to another: :attr:`is_leader` is computed from the
    clock at every call. The signals ``leadership_acquired`` and ``leadership_lost`` tell of both
    ends. After ``fork()`` it is the parent's.

    Example:
        >>> with client.campaign("scheduler", "node-1") as election:
        ...     while election.is_leader:
        ...         tick(fencing_token=election.token)
    """

    def __init__(self, key: str, identity: str, ownership: Ownership) -> None:
        self._key = key
        self._identity = identity
        self._ownership = ownership
        self._mod_revision = ownership.token
        self._proclaiming = threading.Lock()
        self._keep_until = 0.0
        self._engine = ownership.scope.engine
        forking.track(self)
        self._announce(signals.leadership_acquired)
        ownership.when_lost(self._tell_lost)

    @property
    def key(self) -> str:
        """The election's name, as it was asked for."""
        return self._key

    @property
    def etcd_key(self) -> str:
        """The key in etcd that makes us leader."""
        return self._ownership.key.decode(errors="backslashreplace")

    @property
    def identity(self) -> str:
        """What observers see."""
        return self._identity

    @property
    def is_leader(self) -> bool:
        """Whether this process certainly leads, computed from the clock. No I/O."""
        return self._ownership.held

    @property
    def remaining(self) -> float:
        """Seconds the leadership lasts at least, even if etcd cannot be reached from now on."""
        return self._ownership.remaining

    @property
    def token(self) -> int:
        """The fencing token: grows with every leader."""
        return self._ownership.token

    @property
    def done(self) -> threading.Event:
        """Set when the leadership was lost or given up."""
        return self._ownership.done

    @property
    def lost_reason(self) -> str | None:
        """Why the leadership was lost; as :attr:`Lock.lost_reason`."""
        return self._ownership.lost_reason

    @property
    def term(self) -> Term:
        """This leadership, for code that runs under it."""
        own = self._ownership
        return Term(
            self._key, self._identity, own.token, own.done, lambda: own.remaining, own.guard
        )

    def guard(self) -> Compare:
        """Return the condition "still leader" for a transaction of ``client.raw``."""
        return self._ownership.guard()

    def leader(self, *, timeout: Timeout = UNSET) -> str | None:
        """Return who leads now, as etcd has it. One request."""
        return leader(self._ownership.scope, self._key, timeout=timeout)

    def observe(self, *, timeout: Timeout = UNSET) -> LeaderWatch:
        """Follow who leads."""
        return LeaderWatch.open(self._ownership.scope, self._key, timeout=timeout)

    def proclaim(self, value: str, *, timeout: Timeout = UNSET) -> None:
        """Change what observers see, without an election. One request.

        Guarded by the key's mod revision: a proclamation that was delayed on its way never
        overwrites a later one, and none is made after the leadership was lost.

        Raises:
            NotLeader: The leadership was lost.
            EtcdError: etcd could not be told; the value may or may not be changed.
        """
        what = f"proclaim in election {self._key!r}"
        if not self.is_leader:
            raise NotLeader(
                f"{what}: this process does not lead ({self.lost_reason or 'resigned'})"
            )
        raw = _encode(what, value)
        own = self._ownership
        with self._proclaiming:
            own.values.add(raw)
            while not self._proclaim_once(what, raw, timeout):
                pass
        self._identity = value

    def _proclaim_once(self, what: str, raw: bytes, timeout: Timeout) -> bool:
        own = self._ownership
        put = pb.PutRequest(key=own.key, value=raw, lease=own.lease.id)
        request = pb.TxnRequest(
            compare=[
                pb.Compare(
                    result=pb.Compare.EQUAL,
                    target=pb.Compare.MOD,
                    key=own.key,
                    mod_revision=self._mod_revision,
                )
            ],
            success=[pb.RequestOp(request_put=put)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=own.key))],
        )
        answer = self._engine.channel.unary(
            OWN_TXN, request, what=what, timeout=timeout, on_ambiguous=own.lease.taint
        )
        return self._was_proclaimed(what, raw, answer)

    def keep_for(self, seconds: float) -> None:
        """Let nobody else lead for ``seconds`` from now, even if we resign before. No I/O.

        A resignation before that hands the key to a lease of the rest, in three requests.
        """
        self._keep_until = max(self._keep_until, time.monotonic() + seconds)

    def resign(self, *, timeout: float | None = None) -> None:
        """Give the leadership up. Idempotent; one request.

        Raises:
            EtcdError: etcd could not be told; another can lead when our lease expires.
        """
        own = self._ownership
        own.scope.let_go(self)
        if own.begin_release() and own.lost_reason is None:
            self._tell_lost("resigned")
        own.release(timeout, keep_for=max(0.0, self._keep_until - time.monotonic()))

    def close_with_client(self, timeout: float) -> None:
        """Resign because the client is closed."""
        self.resign(timeout=timeout)

    def after_fork_in_child(self) -> None:
        """Replace the lock another thread may have held."""
        self._proclaiming = threading.Lock()

    def __enter__(self) -> Self:
        """Return the election, which must be won.

        Raises:
            NotLeader: It was lost or given up.
        """
        if not self.is_leader:
            raise NotLeader(f"election {self._key!r}: {self.lost_reason or 'resigned'}")
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Resign; a failure to tell etcd is logged, not raised over the body's result."""
        try:
            self.resign()
        except EtcdError as exc:
            _log.warning("election %r is left to expire: %s", self._key, exc)

    def __repr__(self) -> str:
        """Return name, identity and state."""
        state = "leader" if self.is_leader else self.lost_reason or "resigned"
        return f"<Election {self._key!r} {self._identity!r} {state} token={self.token}>"

    def _was_proclaimed(self, what: str, raw: bytes, answer: pb.TxnResponse) -> bool:
        """Take the answer in; return False if it must be sent again with what was learned."""
        if answer.succeeded:
            self._mod_revision = answer.header.revision
            return True
        found = answer.responses[0].response_range.kvs
        own = self._ownership
        if not found or found[0].create_revision != own.token or found[0].lease != own.lease.id:
            raise NotLeader(f"{what}: the leadership was lost")
        if found[0].value not in own.values or found[0].mod_revision <= self._mod_revision:
            raise NotLeader(f"{what}: somebody else overwrote the leader's key")
        # A proclamation of ours whose answer was lost: this one, or one before it.
        self._mod_revision = found[0].mod_revision
        return found[0].value == raw

    def _tell_lost(self, reason: str) -> None:
        self._announce(signals.leadership_lost, reason=reason)

    def _announce(self, signal: Signal, **extra: object) -> None:
        self._engine.announce(
            signal, self, key=self._key, identity=self._identity, token=self.token, **extra
        )


def _encode(what: str, identity: object) -> bytes:
    if not isinstance(identity, str):
        raise InvalidArgument(f"{what}: identity must be a str, not {type(identity).__name__}")
    try:
        return identity.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f"{what}: the identity is not valid Unicode text") from exc


@dataclass(frozen=True)
class _Candidacy:
    """The checked arguments of one campaign."""

    scope: Scope
    key: str
    identity: str
    ttl: int
    what: str

    @classmethod
    def check(cls, scope: Scope, key: str, identity: str, ttl: float | None) -> _Candidacy:
        require_name("campaign", "key", key)
        what = f"campaign in election {key!r}"
        _encode(what, identity)
        return cls(scope, key, identity, normalise_ttl(what, ttl, DEFAULT_TTL), what)

    def contender(self) -> Contender:
        queue_prefix = election_prefix(self.scope.engine.prefix, self.key).encode()
        return Contender(self.scope, queue_prefix, self.identity.encode(), self.ttl, self.what)

    def won(self, contender: Contender) -> Election:
        election = Election(self.key, self.identity, contender.own())
        try:
            self.scope.hold(election, self.what)
        except ClosedError:
            election.resign(timeout=1.0)
            raise
        return election


def campaign(
    scope: Scope, key: str, identity: str, ttl: float | None, timeout: float | None
) -> Election:
    """Wait until this process leads; see :meth:`Client.campaign`."""
    candidacy = _Candidacy.check(scope, key, identity, ttl)
    if timeout is not None and (isinstance(timeout, bool) or timeout < 0):
        raise InvalidArgument(f"{candidacy.what}: timeout must be None or >= 0 s, not {timeout!r}")
    with candidacy.contender() as contender:
        contender.join()
        try:
            contender.wait(timeout)
        except TurnTimeout:
            message = f"{candidacy.what}: not won within {timeout} s{contender.holder}"
            raise CampaignTimeout(message) from None
        return candidacy.won(contender)


def leader(scope: Scope, key: str, *, timeout: Timeout = UNSET) -> str | None:
    """Return who leads; see :meth:`Client.leader`."""
    require_name("leader", "key", key)
    what = f"leader of election {key!r}"
    prefix = election_prefix(scope.engine.prefix, key).encode()
    answer = scope.engine.channel.unary(RANGE, queue_range(prefix), what=what, timeout=timeout)
    found = list(answer.kvs)
    if found and not is_queue_key(prefix, found[0].key):
        found = full_queue(scope, prefix, what, keys_only=False)
    return found[0].value.decode(errors="replace") if found else None


class LeaderWatch:
    """Follows who leads an election: an iterator of identities, None while nobody leads.

    It yields the leader at the start, then every change: another leader, or another identity
    proclaimed by the same one. Changes that came while etcd could not be reached may be merged, but
    the last value is always the final one. One thread may read; :meth:`close` is for any.

    Example:
        >>> with client.observe("scheduler") as leaders:
        ...     for leader in leaders:
        ...         print(leader or "nobody")
    """

    def __init__(self, scope: Scope, key: str) -> None:
        require_name("observe", "key", key)
        self._scope = scope
        self._key = key
        self._what = f"observe election {key!r}"
        self._prefix = election_prefix(scope.engine.prefix, key).encode()
        self._mirror = Mirror(
            scope.engine, self._prefix, prefix_range_end(self._prefix), self._what
        )
        self._queue: queue.SimpleQueue[tuple[str | None] | None] = queue.SimpleQueue()
        self._last: Entry | None = None
        self._first = True
        self._closed = False
        self._strand: Strand | None = None
        forking.track(self)

    def after_fork_in_child(self) -> None:
        """Be closed in the child: the watch is the parent's."""
        self._closed = True
        self._queue = queue.SimpleQueue()
        self._queue.put(None)

    @classmethod
    def open(cls, scope: Scope, key: str, *, timeout: Timeout = UNSET) -> LeaderWatch:
        """Read who leads and start watching; see :meth:`Client.observe`."""
        watch = cls(scope, key)
        watch._mirror.start(timeout=timeout)
        watch._strand = watch._mirror.subscribe(watch._on_change, watch._what)
        try:
            scope.hold(watch, watch._what)
        except ClosedError:
            watch.close()
            raise
        return watch

    def next(self, timeout: float | None = None) -> str | None:
        """Wait for the next value.

        Raises:
            RequestTimeout: None came within ``timeout`` seconds.
            ClosedError: The watch or the client is closed.
        """
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            raise RequestTimeout(f"{self._what}: no change within {timeout} s") from None
        if item is None:
            self._queue.put(None)
            raise ClosedError(f"{self._what}: the watch is closed")
        return item[0]

    def __iter__(self) -> Iterator[str | None]:
        """Yield each value until the watch is closed."""
        while True:
            try:
                yield self.next()
            except ClosedError:
                return

    def close(self) -> None:
        """End the watch and every :meth:`next` that waits. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._scope.let_go(self)
        self._mirror.close()
        if self._strand is not None:
            self._strand.close(1.0)
        self._queue.put(None)

    def close_with_client(self, timeout: float) -> None:
        """End the watch because the client is closed."""
        self.close()

    def __enter__(self) -> Self:
        """Return the watch."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the watch."""
        self.close()

    def _on_change(self, change: Change) -> None:
        own = [e for e in change.after.entries.values() if is_queue_key(self._prefix, e.key)]
        first = min(own, key=lambda entry: entry.create_revision, default=None)
        if self._first or not _same_leader(first, self._last):
            self._first = False
            self._last = first
            self._queue.put((None if first is None else first.value.decode(errors="replace"),))


def _same_leader(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.key, one.create_revision, one.value) == (
        other.key,
        other.create_revision,
        other.value,
    )


class Candidate:
    """A candidacy in the background: campaigns, and again after every loss, until closed.

    Starts its thread at once and waits for nothing. After ``fork()`` it is the parent's: in the
    child it never leads.

    Example:
        >>> with client.candidate("scheduler") as candidate:
        ...     while True:
        ...         if candidate.is_leader_for(5.0):
        ...             tick(candidate.term.token)
        ...         time.sleep(1)
    """

    def __init__(
        self, scope: Scope, key: str, identity: str | None = None, ttl: float | None = None
    ) -> None:
        identity = f"{socket.gethostname()}:{os.getpid()}" if identity is None else identity
        self._candidacy = _Candidacy.check(scope, key, identity, ttl)
        self._scope = scope
        self._changed = threading.Condition()
        self._contender: Contender | None = None
        self._election: Election | None = None
        self._answers = 0
        self._error: EtcdError | None = None
        self._stopping = threading.Event()
        scope.hold(self, self._candidacy.what)
        forking.track(self)
        self._thread = threading.Thread(target=self._run, name=f"etcd-candidate-{key}", daemon=True)
        self._thread.start()

    @property
    def key(self) -> str:
        """The election's name."""
        return self._candidacy.key

    @property
    def identity(self) -> str:
        """What observers see while this process leads."""
        return self._candidacy.identity

    @property
    def is_leader(self) -> bool:
        """Whether this process certainly leads, computed from the clock. No I/O."""
        election = self._election
        return election is not None and election.is_leader

    def is_leader_for(self, min_remaining: float) -> bool:
        """Whether this process leads for ``min_remaining`` seconds at least, even without etcd."""
        election = self._election
        return election is not None and election.remaining >= max(min_remaining, 1e-9)

    @property
    def term(self) -> Term | None:
        """The current leadership, or None."""
        election = self._election
        return election.term if election is not None and election.is_leader else None

    def keep_for(self, seconds: float) -> None:
        """As :meth:`Election.keep_for`, if this process leads."""
        election = self._election
        if election is not None:
            election.keep_for(seconds)

    @property
    def error(self) -> EtcdError | None:
        """Why the last try to join failed; None once joined."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until this process leads; return whether it does."""
        with self._changed:
            self._changed.wait_for(lambda: self.is_leader or self._stopping.is_set(), timeout)
            return self.is_leader

    def wait_for_answer(self, timeout: float | None = None) -> bool:
        """Wait until etcd answered the first try to join, or it failed; return whether it was."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._answers > 0 or self._stopping.is_set(), timeout
            )

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Resign or leave the queue, and end the thread. Idempotent, bounded by ``timeout``."""
        deadline = time.monotonic() + timeout
        self._scope.let_go(self)
        self._stopping.set()
        with self._changed:
            contender = self._contender
            self._changed.notify_all()
        if contender is not None:
            contender.abort()
        election = self._election
        if election is not None:
            election.resign(timeout=timeout)
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def close_with_client(self, timeout: float) -> None:
        """End the candidacy because the client is closed."""
        self.close(timeout)

    def after_fork_in_child(self) -> None:
        """Forget the parent's candidacy."""
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._stopping.set()
        self._election = None
        self._contender = None

    def __enter__(self) -> Self:
        """Return the candidate."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the candidacy."""
        self.close()

    def _run(self) -> None:
        backoff = Backoff(base=0.1, cap=5.0)
        while not self._stopping.is_set():
            try:
                self._campaign_once()
                backoff.reset()
            except ClosedError:
                break
            except EtcdError as exc:
                self._failed(exc)
                self._stopping.wait(backoff.next())
            except Exception:
                _log.exception("the candidacy in election %r failed and goes on", self.key)
                self._stopping.wait(backoff.next())

    def _campaign_once(self) -> None:
        with self._candidacy.contender() as contender:
            with self._changed:
                self._contender = contender
            contender.join()
            if not contender.first:
                self._answered(None)
            if self._stopping.is_set():
                return
            contender.wait(None)
            election = self._candidacy.won(contender)
        with self._changed:
            self._contender = None
            self._election = election
        self._answered(None)
        if self._stopping.is_set():
            election.resign(timeout=_CLOSE_SECONDS)
        election.done.wait()
        with self._changed:
            self._election = None
        # After a loss too: a key that somebody overwrote would stand before our next one for ever.
        election.resign(timeout=_CLOSE_SECONDS)

    def _answered(self, error: EtcdError | None) -> None:
        with self._changed:
            self._answers += 1
            self._error = error
            self._changed.notify_all()

    def _failed(self, exc: EtcdError) -> None:
        if self._error is None and not isinstance(exc, LeaseLost):
            _log.warning("%s: %s; trying again", self._candidacy.what, exc)
        self._answered(exc)
