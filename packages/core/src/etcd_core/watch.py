"""The watch hub: all watches of a client on one stream, resumed for ever.

The thread ``etcd-watch`` reads the stream and hands each delivery to the watch's sink; sinks are
ours and never block (they post to a dispatcher strand, or set an event). Watches are added and
cancelled from any thread under the hub's lock, which is never held while a sink runs.

Rules and their reasons: semantics section 4 (W1 to W15).
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from .errors import (
    ClosedError,
    ClusterReset,
    Compacted,
    EtcdError,
    ServerError,
    Unauthenticated,
)
from .events import Event, fields
from .vitals import WatchVitals
from .wire import messages as pb
from .wire.channel import Backoff, CallFailed, Channel, Duplex
from .wire.classify import Kind, classify, denied
from .wire.endpoints import Link
from .wire.rpc import RANGE, WATCH

_log = logging.getLogger("etcd_core.watch")

_CHECK_SECONDS = 2.0
_LOGIN_PAUSE = 5.0

WatchStream: TypeAlias = Duplex[pb.WatchRequest, pb.WatchResponse]


class Created(NamedTuple):
    """The watch is live; events after ``revision`` will be delivered."""

    revision: int


class Events(NamedTuple):
    """All events of one or more whole revisions, in order."""

    revision: int
    events: Sequence[pb.Event]
    header: pb.ResponseHeader


class Progress(NamedTuple):
    """Everything up to ``revision`` has been delivered."""

    revision: int
    header: pb.ResponseHeader


class Ended(NamedTuple):
    """The watch is over; nothing follows."""

    error: EtcdError


Delivery: TypeAlias = Created | Events | Progress | Ended
Sink: TypeAlias = Callable[[Delivery], None]


class Watch:
    """A handle on one watch. Made by :meth:`WatchHub.watch`."""

    def __init__(
        self, hub: WatchHub, watch_id: int, request: pb.WatchCreateRequest, sink: Sink, epoch: int
    ) -> None:
        self.id = watch_id
        self.next_revision: int = request.start_revision
        self.sink = sink
        self.epoch = epoch
        self.over = False
        # Since when etcd does not serve it; None while it does.
        self.down_since: float | None = time.monotonic()
        self.fragments: list[pb.Event] = []
        self.refused_generation: int | None = None
        self.retried = False
        self._hub = hub
        self._request = request

    @property
    def what(self) -> str:
        """The operation and key, for errors."""
        return f"watch {self._request.key.decode(errors='backslashreplace')!r}"

    def cancel(self) -> None:
        """Stop the watch; a delivery that is under way may still reach the sink."""
        self._hub.cancel(self)

    def create_request(self) -> pb.WatchRequest:
        """Return the request that starts or resumes the watch on a fresh stream."""
        request = pb.WatchCreateRequest()
        request.CopyFrom(self._request)
        request.watch_id = self.id
        request.start_revision = self.next_revision
        return pb.WatchRequest(create_request=request)

    def check_request(self) -> pb.RangeRequest:
        """Return a linearizable read in the watched range (the user may read nothing else)."""
        request = self._request
        return pb.RangeRequest(key=request.key, range_end=request.range_end, count_only=True)


class _Restart(Exception):
    """The stream must be opened anew, for a reason that is nobody's fault."""


class WatchHub:
    """All watches of one client.

    Args:
        channel: Where the stream is opened.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._watches: dict[int, Watch] = {}
        self._pending: deque[Watch] = deque()
        self._stream: WatchStream | None = None
        self._ids = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._closed = False
        # Below: owned by the hub's thread.
        self._login_refused = False
        self._last_stream: WatchStream | None = None
        self._seen = 0
        self._seen_epoch = 0
        self._heard_at: float | None = None
        channel.on_suspect = self._leave

    # -- any thread ----------------------------------------------------------------------------

    def watch(
        self,
        key: bytes,
        sink: Sink,
        *,
        range_end: bytes = b"",
        start_revision: int = 0,
        prev_kv: bool = False,
        filters: Sequence[int] = (),
        epoch: int | None = None,
    ) -> Watch:
        """Start a watch. Does not block; the outcome comes to the sink.

        Args:
            key: The key, or the start of the range.
            sink: Called in the hub's thread; must not block and must not raise.
            range_end: The exclusive end of the range.
            start_revision: The first revision wanted; 0 is "from now".
            prev_kv: Ask for the values before each event.
            filters: ``WatchCreateRequest.NOPUT`` and ``NODELETE``.
            epoch: The store's epoch at the read that gave ``start_revision``: a reset between
                that read and now ends the watch at once instead of leaving it silent.
        """
        request = pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            filters=filters,
            # Keeps next_revision fresh, so that compaction does not overtake an idle watch.
            progress_notify=True,
            # One answer must not exceed what gRPC carries; we merge the parts.
            fragment=True,
        )
        with self._lock:
            if self._closed:
                raise ClosedError("watch: the client is closed")
            # Under the lock: a reset before this shows here, one after it finds the watch.
            current = self._channel.store.epoch
            # Never id 0: a refused create answers with id 0 on 3.5.1 and so kills a live watch 0.
            watch = Watch(self, next(self._ids), request, sink, current if epoch is None else epoch)
            self._watches[watch.id] = watch
            if self._stream is not None:
                self._create(self._stream, watch)
            self._start()
            self._wanted.notify()
        if watch.epoch != current:
            self._end(watch, ClusterReset(f"{watch.what}: the store was reset"))
        return watch

    def cancel(self, watch: Watch) -> None:
        """Stop ``watch``; idempotent."""
        with self._lock:
            watch.over = True
            if self._watches.pop(watch.id, None) is None:
                return
            # While its create is unanswered, the answer's handler sends the cancel.
            if self._stream is not None and watch not in self._pending:
                self._stream.send(_cancel_request(watch.id))

    def reset(self, epoch: int) -> None:
        """End every watch that began before the store's ``epoch``."""
        with self._lock:
            stale = [watch for watch in self._watches.values() if watch.epoch < epoch]
        for watch in stale:
            self._end(watch, ClusterReset(f"{watch.what}: the store was reset"), tell_server=True)

    def close(self, timeout: float) -> None:
        """End all watches with :class:`ClosedError` and the thread."""
        with self._lock:
            self._closed = True
            watches = list(self._watches.values())
            stream, thread = self._stream, self._thread
            self._wanted.notify_all()
        for watch in watches:
            self._end(watch, ClosedError(f"{watch.what}: the client is closed"))
        if stream is not None:
            stream.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    @property
    def count(self) -> int:
        """Number of live watches."""
        return len(self._watches)

    def vitals(self) -> WatchVitals:
        """Tell how the stream keeps up with the store."""
        with self._lock:
            watches = list(self._watches.values())
        store, heard_at = self._channel.store, self._heard_at
        if not watches:
            return WatchVitals(0, 0, 0, None)
        # What was seen of a store before its reset says nothing about the one of now.
        seen = self._seen if self._seen_epoch == store.epoch else 0
        return WatchVitals(
            count=len(watches),
            down=sum(watch.down_since is not None for watch in watches),
            lag=max(0, store.revision - seen),
            silence=None if heard_at is None else time.monotonic() - heard_at,
        )

    def _start(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
            # Kept only once it runs: a start that fails must be tried again.
            thread.start()
            self._thread = thread

    def _create(self, stream: WatchStream, watch: Watch) -> None:
        self._pending.append(watch)
        stream.send(watch.create_request())

    def _end(self, watch: Watch, error: EtcdError, *, tell_server: bool = False) -> None:
        with self._lock:
            if self._watches.pop(watch.id, None) is None:
                return
            watch.over = True
            if tell_server and self._stream is not None and watch not in self._pending:
                self._stream.send(_cancel_request(watch.id))
        self._deliver(watch, Ended(error))

    def _leave(self, link: Link) -> None:
        """Reopen elsewhere: the keep-alive found that ``link`` does not answer."""
        with self._lock:
            stream = self._stream
        if stream is not None and stream.link is link:
            stream.cancel()

    # -- the hub's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        backoff = Backoff(base=0.001, cap=1.0)
        while self._wait_until_wanted():
            try:
                self._serve_once(backoff)
            except ClosedError:
                return
            except _Restart:
                continue
            except Exception:
                _log.exception(
                    "the watch thread failed and goes on",
                    extra=fields(Event.INTERNAL_ERROR, part="watch"),
                )
            try:
                pause = _LOGIN_PAUSE if self._login_refused else backoff.next()
                self._channel.pause(pause)
            except ClosedError:
                return

    def _serve_once(self, backoff: Backoff) -> None:
        try:
            self._serve(backoff)
        except ClosedError:
            raise
        except EtcdError as exc:
            self._cannot_open(exc)
        except CallFailed as exc:
            self._stream_failed(exc)

    def _wait_until_wanted(self) -> bool:
        with self._lock:
            while not self._watches and not self._closed:
                self._wanted.wait()
            return not self._closed

    def _serve(self, backoff: Backoff) -> None:
        self._enter_epoch()
        stream = self._last_stream = self._channel.open(WATCH)
        try:
            with self._lock:
                if self._closed:
                    return
                self._stream = stream
                self._pending.clear()
                for watch in self._watches.values():
                    watch.fragments = []
                    self._create(stream, watch)
            for response in stream:
                backoff.reset()
                self._heard_at = time.monotonic()
                self._login_refused = False
                self._handle(stream, response)
        finally:
            with self._lock:
                self._stream = None
                self._pending.clear()
                now = time.monotonic()
                for watch in self._watches.values():
                    watch.down_since = watch.down_since or now
            stream.cancel()

    def _enter_epoch(self) -> None:
        """Forget what the store had before it was reset, or its answers would look like another.

        Called before a stream is opened, never during one: what an old stream still delivers must
        not count for the new store.
        """
        epoch = self._channel.store.epoch
        if epoch != self._seen_epoch:
            self._seen, self._seen_epoch = 0, epoch

    def _cannot_open(self, exc: EtcdError) -> None:
        if isinstance(exc, Unauthenticated) and not self._login_refused:
            # Each try costs the server a bcrypt: ask rarely, and say it once.
            self._login_refused = True
            _log.warning(
                "watches wait for a working login: %s",
                exc,
                extra=fields(Event.WATCH_FAILING, watch="all", reason=str(exc)),
            )

    def _stream_failed(self, exc: CallFailed) -> None:
        stream = self._last_stream
        if exc.code == "CANCELLED" or stream is None:
            return
        if exc.kind is Kind.TOKEN:
            self._refresh_token(stream)
            return
        self._channel.failed(stream.link, exc.details)
        self._channel.endpoints.rotate(stream.link)

    def _handle(self, stream: WatchStream, response: pb.WatchResponse) -> None:
        if response.created:
            self._on_created(stream, response)
            return
        watch = self._watches.get(response.watch_id)
        if watch is None:
            return
        if response.canceled:
            self._on_canceled(stream, watch, response)
        elif response.events or watch.fragments:
            self._on_events(watch, response)
        else:
            self._note(response.header)
            watch.next_revision = max(watch.next_revision, response.header.revision + 1)
            self._deliver(watch, Progress(response.header.revision, response.header))

    def _on_created(self, stream: WatchStream, response: pb.WatchResponse) -> None:
        watch = self._answered_create(response)
        if watch is None:
            return
        if watch.over:
            stream.send(_cancel_request(watch.id))
            return
        if response.canceled:
            self._on_canceled(stream, watch, response)
            return
        watch.refused_generation = None
        watch.retried = False
        revision = response.header.revision
        if watch.next_revision == 0:
            watch.next_revision = revision + 1
        elif self._looks_older(watch, response.header) and self._was_reset(watch):
            return
        self._note(response.header)
        watch.down_since = None
        self._deliver(watch, Created(revision))

    def _note(self, header: pb.ResponseHeader) -> None:
        """Remember how far the store is, for the day on which it is not: a watch may be all we do.

        The revision only: a member that has just lost its leader counts its term up alone.
        """
        self._seen = max(self._seen, header.revision)

    def _answered_create(self, response: pb.WatchResponse) -> Watch | None:
        """Return the watch whose create this answers: creates are answered in order.

        A refused one may come with id -1 or 0 instead of ours.
        """
        with self._lock:
            for watch in self._pending:
                if watch.id == response.watch_id:
                    self._pending.remove(watch)
                    return watch
            return self._pending.popleft() if response.canceled and self._pending else None

    def _looks_older(self, watch: Watch, header: pb.ResponseHeader) -> bool:
        store = self._channel.store
        store.know(self._seen, self._seen_epoch)
        # A user may ask for a revision that is still to come; only what was seen must be there.
        behind = header.revision < min(watch.next_revision - 1, store.revision)
        return behind or header.raft_term < store.term

    def _was_reset(self, watch: Watch) -> bool:
        """Ask the cluster whether it forgot what we have seen, or this member merely lags.

        The read goes through the channel's store clock, which tells everybody about a reset.
        """
        store = self._channel.store
        epoch = store.epoch
        try:
            self._channel.unary(
                RANGE, watch.check_request(), what=watch.what, timeout=_CHECK_SECONDS
            )
        except ClosedError:
            raise
        except EtcdError as exc:
            # Undecided: come back with a new stream rather than sit on a silent watch.
            _log.debug("%s: cannot check for a reset: %s", watch.what, exc)
            self._channel.pause(0.1)
            raise _Restart from exc
        return store.epoch != epoch

    def _on_events(self, watch: Watch, response: pb.WatchResponse) -> None:
        watch.fragments.extend(response.events)
        if response.fragment:
            return
        # Some servers replay events from before the asked revision (etcd issue 20221).
        events = [e for e in watch.fragments if e.kv.mod_revision >= watch.next_revision]
        watch.fragments = []
        if not events:
            return
        # Not the header's revision: while a watch catches up, that one is ahead of its events.
        revision = events[-1].kv.mod_revision
        watch.next_revision = revision + 1
        self._note(response.header)
        self._deliver(watch, Events(revision, events, response.header))

    def _on_canceled(self, stream: WatchStream, watch: Watch, response: pb.WatchResponse) -> None:
        if response.compact_revision:
            message = (
                f"{watch.what}: revision {watch.next_revision} has been compacted;"
                f" {response.compact_revision} is the oldest readable one"
            )
            self._end(watch, Compacted(message, compact_revision=response.compact_revision))
            return
        reason = response.cancel_reason or "etcd cancelled the watch without a reason"
        if self._is_refusal(reason):
            self._on_refused(stream, watch, reason)
        elif classify("UNKNOWN", reason) is not Kind.FINAL and not watch.retried:
            watch.retried = True
            self._channel.pause(0.05)
            raise _Restart
        else:
            message = f"{watch.what}: {reason}"
            self._end(watch, ServerError(message, code="CANCELLED", server_message=reason))

    @staticmethod
    def _is_refusal(reason: str) -> bool:
        lowered = reason.lower().replace(" ", "")
        return any(
            word in lowered
            for word in ("permissiondenied", "unauthenticated", "authtoken", "authstore")
        )

    def _on_refused(self, stream: WatchStream, watch: Watch, reason: str) -> None:
        """A stream keeps the token it was opened with, so an expired one refuses new watches.

        Servers call that permission denied just as the real thing: only a refusal of a fresh token
        on a fresh stream is final.
        """
        refused = watch.refused_generation
        if self._channel.logs_in and (refused is None or stream.token_generation == refused):
            watch.refused_generation = stream.token_generation
            try:
                self._channel.refresh_token(stream.token_generation)
            except Unauthenticated as exc:
                # Only this watch ends: those that are live on the stream outlive their token.
                self._end(watch, Unauthenticated(f"{watch.what}: {exc}"))
                return
            raise _Restart
        if "permission" in reason.lower():
            self._end(watch, denied(watch.what, self._channel.user))
        else:
            self._end(watch, Unauthenticated(f"{watch.what}: {reason}"))

    def _refresh_token(self, stream: WatchStream) -> None:
        try:
            self._channel.refresh_token(stream.token_generation)
        except ClosedError:
            raise
        except EtcdError as exc:
            self._cannot_open(exc)

    def _deliver(self, watch: Watch, delivery: Delivery) -> None:
        if watch.over and not isinstance(delivery, Ended):
            return
        try:
            watch.sink(delivery)
        except Exception:
            _log.exception(
                "%s: its sink failed",
                watch.what,
                extra=fields(Event.INTERNAL_ERROR, part="watch"),
            )


def _cancel_request(watch_id: int) -> pb.WatchRequest:
    return pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=watch_id))
