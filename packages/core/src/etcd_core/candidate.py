"""A candidacy in the background, in a thread ``etcd-candidate-<key>`` of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time

from typing_extensions import Self

from . import forking
from .contender import Contender
from .election import Candidacy, Election, Term
from .engine import Scope
from .errors import OUTAGE, ClosedError, EtcdError, LeaseLost
from .events import Event, fields
from .vitals import ElectionVitals, track
from .wire.channel import Backoff

_log = logging.getLogger("etcd_core.election")

_CLOSE_SECONDS = 2.0


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
        self._candidacy = Candidacy.check(scope, key, identity, ttl)
        self._scope = scope
        self._changed = threading.Condition()
        self._contender: Contender | None = None
        self._election: Election | None = None
        self._answers = 0
        self._error: EtcdError | None = None
        # What of it the log has told, so that it tells the end too.
        self._told_failing = False
        self._lost_at: float | None = None
        self._stopping = threading.Event()
        scope.hold(self, self._candidacy.what)
        forking.track(self)
        track(self)
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

    def tell_vitals(self) -> ElectionVitals | None:
        """Tell that this process stands, until closed; what it wins tells of itself."""
        return None if self._stopping.is_set() else self._candidacy.tell_vitals()

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
        try:
            if election is not None:
                election.resign(timeout=timeout)
        finally:
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
        """Close it; a failure to tell etcd is logged, not raised over the result of the body."""
        try:
            self.close()
        except EtcdError as exc:
            _log.warning(
                "the candidacy in election %r is left to expire: %s",
                self.key,
                exc,
                extra=fields(Event.RELEASE_FAILED, kind="election", name=self.key, reason=str(exc)),
            )

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
                _log.exception(
                    "the candidacy in election %r failed and goes on",
                    self.key,
                    extra=fields(Event.INTERNAL_ERROR, part="candidacy"),
                )
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
        self._tell_regained(election)
        if self._stopping.is_set():
            self._leave(election)
        election.done.wait()
        with self._changed:
            self._election = None
        if election.lost_reason is not None:
            self._lost_at = time.monotonic()
        self._leave(election)

    def _leave(self, election: Election) -> None:
        # After a loss too: a key that somebody overwrote would stand before our next one for ever.
        try:
            election.resign(timeout=_CLOSE_SECONDS)
        except ClosedError:
            raise
        except EtcdError as exc:
            _log.debug("%s: the former key is left to expire: %s", self._candidacy.what, exc)

    def _answered(self, error: EtcdError | None) -> None:
        with self._changed:
            self._answers += 1
            self._error = error
            self._changed.notify_all()
        if error is None and self._told_failing:
            self._told_failing = False
            _log.warning(
                "%s: joined",
                self._candidacy.what,
                extra=fields(Event.CANDIDACY_RESTORED, election=self.key),
            )

    def _failed(self, exc: EtcdError) -> None:
        self._tell_failing(exc)
        self._answered(exc)

    def _tell_failing(self, exc: EtcdError) -> None:
        if self._told_failing or isinstance(exc, LeaseLost):
            return
        what = self._candidacy.what
        text = str(exc) if str(exc).startswith(what) else f"{what}: {exc}"
        if isinstance(exc, OUTAGE) and not self._scope.engine.channel.connected:
            # The channel has told of it, and will tell of its end.
            _log.debug("%s; trying again", text)
            return
        self._told_failing = True
        _log.warning(
            "%s; trying again",
            text,
            extra=fields(Event.CANDIDACY_FAILING, election=self.key, reason=str(exc)),
        )

    def _tell_regained(self, election: Election) -> None:
        if self._lost_at is None:
            return
        seconds, self._lost_at = time.monotonic() - self._lost_at, None
        _log.warning(
            "%s: leads again after %.1f s",
            self._candidacy.what,
            seconds,
            extra=fields(
                Event.LEADERSHIP_REGAINED,
                election=self.key,
                token=election.token,
                seconds=seconds,
            ),
        )
