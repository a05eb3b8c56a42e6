"""Leader election: the same queue as the lock, with the identity as the value of the key.

Recipe over :mod:`ownership` and :mod:`contender`. Observers: :mod:`observe`; candidacies in the
background: :mod:`candidate`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blinker import Signal
from typing_extensions import Self

from . import forking, observe, signals
from .config import UNSET, Timeout
from .contender import Contender, TurnTimeout
from .engine import Scope
from .errors import CampaignTimeout, ClosedError, EtcdError, InvalidArgument, NotLeader
from .events import Event, fields
from .keys import election_prefix, require_name
from .lease import normalise_ttl
from .ownership import Compare, Owned, Ownership
from .vitals import ElectionVitals, track
from .wire import messages as pb
from .wire.channel import check_timeout
from .wire.rpc import OWN_TXN

_log = logging.getLogger("etcd_core.election")

DEFAULT_TTL = 15.0


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


class Election(Owned):
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
        super().__init__(key, ownership)
        self._identity = identity
        self._mod_revision = ownership.token
        self._proclaiming = threading.Lock()
        self._keep_until = 0.0
        self._engine = ownership.scope.engine
        forking.track(self)
        track(self)
        self._announce(signals.leadership_acquired)
        ownership.when_lost(self._end)

    @property
    def identity(self) -> str:
        """What observers see."""
        return self._identity

    @property
    def is_leader(self) -> bool:
        """Whether this process certainly leads, computed from the clock. No I/O."""
        return self._ownership.held

    def tell_vitals(self) -> ElectionVitals | None:
        """Tell whether it still leads; None once it was given up."""
        own = self._ownership
        if own.released:
            return None
        leading, prefix = own.held, self._engine.prefix
        token = own.token if leading else None
        return ElectionVitals(self._key, prefix, self._identity, leading, token, own.remaining)

    @property
    def term(self) -> Term:
        """This leadership, for code that runs under it."""
        own = self._ownership
        return Term(
            self._key, self._identity, own.token, own.done, lambda: own.remaining, own.guard
        )

    def leader(self, *, timeout: Timeout = UNSET) -> str | None:
        """Return who leads now, as etcd has it. One request."""
        return observe.leader(self._ownership.scope, self._key, timeout=timeout)

    def observe(self, *, timeout: Timeout = UNSET) -> observe.LeaderWatch:
        """Follow who leads."""
        return observe.LeaderWatch.open(self._ownership.scope, self._key, timeout=timeout)

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
            own.expect(raw)
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
            if self._told_already:
                _log.debug("election %r, which was lost, is left to expire: %s", self._key, exc)
                return
            _log.warning(
                "election %r is left to expire: %s",
                self._key,
                exc,
                extra=fields(
                    Event.RELEASE_FAILED, kind="election", name=self._key, reason=str(exc)
                ),
            )

    def __repr__(self) -> str:
        """Return name, identity and state."""
        state = "leader" if self.is_leader else self.lost_reason or "resigned"
        return f"<Election {self._key!r} {self._identity!r} {state} token={self.token}>"

    def __del__(self) -> None:
        """Leave the queue for good after a loss: a third party may have kept the key there."""
        ownership: Ownership | None = getattr(self, "_ownership", None)
        if ownership is not None:
            ownership.abandon_from_finalizer()

    def _was_proclaimed(self, what: str, raw: bytes, answer: pb.TxnResponse) -> bool:
        """Take the answer in; return False if it must be sent again with what was learned."""
        if answer.succeeded:
            self._mod_revision = answer.header.revision
            self._ownership.confirm(raw, self._mod_revision)
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

    def _end(self, reason: str) -> None:
        # A program that campaigns again after each loss would collect them until the close.
        self._ownership.scope.loosen(self)
        self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        self._announce(signals.leadership_lost, reason=reason)

    def _announce(self, signal: Signal, **extra: object) -> None:
        self._ownership.scope.announce(
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
class Candidacy:
    """The checked arguments of one campaign. Internal."""

    scope: Scope
    key: str
    identity: str
    ttl: int
    what: str

    @classmethod
    def check(cls, scope: Scope, key: str, identity: str, ttl: float | None) -> Candidacy:
        """Return the candidacy, or raise :class:`InvalidArgument`."""
        require_name("campaign", "key", key)
        what = f"campaign in election {key!r}"
        _encode(what, identity)
        return cls(scope, key, identity, normalise_ttl(what, ttl, DEFAULT_TTL), what)

    def tell_vitals(self) -> ElectionVitals:
        """Tell that this process stands; the election that it wins tells the rest."""
        prefix = self.scope.engine.prefix
        return ElectionVitals(self.key, prefix, self.identity, False, None, 0.0)

    def contender(self) -> Contender:
        """Return a new try to win."""
        queue_prefix = election_prefix(self.scope.engine.prefix, self.key).encode()
        return Contender(
            self.scope,
            queue_prefix,
            self.identity.encode(),
            self.ttl,
            self.what,
            loss=Event.LEADERSHIP_LOST,
        )

    def won(self, contender: Contender) -> Election:
        """Return the election that ``contender`` won; the client holds it from now on."""
        election = Election(self.key, self.identity, contender.own())
        try:
            self.scope.hold(election, self.what)
        except ClosedError:
            election.resign(timeout=1.0)
            raise
        if election.lost_reason is not None:
            self.scope.loosen(election)
        return election


def campaign(
    scope: Scope, key: str, identity: str, ttl: float | None, timeout: float | None
) -> Election:
    """Wait until this process leads; see :meth:`Client.campaign`."""
    candidacy = Candidacy.check(scope, key, identity, ttl)
    check_timeout(candidacy.what, timeout)
    track(candidacy)
    with candidacy.contender() as contender:
        try:
            contender.acquire(timeout)
        except TurnTimeout:
            message = f"{candidacy.what}: not won within {timeout} s{contender.holder}"
            raise CampaignTimeout(message) from None
        return candidacy.won(contender)
