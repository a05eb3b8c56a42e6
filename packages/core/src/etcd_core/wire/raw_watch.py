"""etcd3's `Watcher` on our watch hub, so that its watches survive what the hub's do.

The hub's thread only queues deliveries; the user's callbacks run on the dispatcher, in order per
watch. State is guarded by one lock, which is never held while user code runs.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from etcd3.events import new_event
from etcd3.exceptions import RevisionCompactedError, WatchTimedOut
from etcd3.utils import to_bytes
from etcd3.watch import Watcher, WatchResponse

from .. import forking
from ..dispatch import Strand, Subscription
from ..errors import ClosedError, Compacted, EtcdError
from ..watch import Created, Delivery, Ended, Events, Progress, Watch

if TYPE_CHECKING:
    from ..engine import Scope
    from .raw_channel import Patience

Callback: TypeAlias = Callable[[WatchResponse | Exception], object]
"""Takes each response; an error instead of a response is the watch's end."""

_LAST_WORD_SECONDS = 0.5


class _RawWatch:
    """One watch: from the hub's deliveries to calls of the user's callback."""

    def __init__(
        self,
        strand: Strand,
        callback: Callback,
        wants_progress: bool,
        forget: Callable[[], object],
    ) -> None:
        self._strand = strand
        self._callback = callback
        self._wants_progress = wants_progress
        self._forget = forget
        # The first of Created and Ended decides whether the watch began or was refused.
        self._created: Future[None] = Future()
        self._watch: Watch | None = None
        self._runner: int | None = None
        self._over = False
        self._told = threading.Event()

    def start(self, watch: Callable[[Callable[[Delivery], None]], Watch]) -> None:
        """Begin the watch that ``watch(sink)`` makes."""
        self._watch = watch(self._deliver)

    def wait_created(self, timeout: float | None) -> None:
        """Wait until the watch is live.

        Raises:
            WatchTimedOut: etcd did not answer in time.
            RevisionCompactedError: The start revision has been compacted.
            EtcdError: It was refused, or the client was closed.
        """
        try:
            refusal = self._created.exception(timeout)
        except FutureTimeout:
            raise WatchTimedOut from None
        if refusal is not None:
            raise refusal

    def cancel(self) -> None:
        """End it; no callback runs after the return, unless this was called from one."""
        Subscription(self._strand, self._stop).cancel()

    def end(self, error: EtcdError) -> bool:
        """Tell the user that it is over; return whether the callback will be called for it."""
        self._stop()
        told = _for_etcd3(error)
        try:
            self._created.set_exception(told)
        except InvalidStateError:
            return self._strand.post(partial(self._finish, told))
        return False

    def wait_told(self, timeout: float) -> None:
        """Wait until the callback was called for the end."""
        if self._runner != threading.get_ident():
            self._told.wait(timeout)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

    def _deliver(self, delivery: Delivery) -> None:
        if isinstance(delivery, Created):
            self._note_created()
        elif isinstance(delivery, Ended):
            self.end(delivery.error)
        elif isinstance(delivery, Events) or self._wants_progress:
            self._strand.post(partial(self._respond, delivery))

    def _note_created(self) -> None:
        try:
            self._created.set_result(None)
        except InvalidStateError:
            # It was resumed after a reconnect, or ended meanwhile.
            return

    def _respond(self, delivery: Events | Progress) -> None:
        events = delivery.events if isinstance(delivery, Events) else ()
        self._call(WatchResponse(delivery.header, [new_event(event) for event in events]))

    def _finish(self, error: Exception) -> None:
        self._forget()
        try:
            self._call(error)
        finally:
            self._over = True
            self._told.set()

    def _call(self, response: WatchResponse | Exception) -> None:
        if self._over:
            return
        self._runner = threading.get_ident()
        try:
            self._callback(response)
        finally:
            self._runner = None


class RawWatcher(Watcher):
    """The watches of a raw client. Safe to use from any thread.

    In a forked child it is empty: the parent's watches are not the child's.

    Args:
        scope: Gives this process's scope.
        patience: How long to wait for a watch to become live.
    """

    def __init__(self, scope: Callable[[], Scope], patience: Patience) -> None:
        # Not etcd3's constructor: its watch thread is what this class replaces.
        self._scope = scope
        self._patience = patience
        self._lock = threading.Lock()
        self._watches: dict[int, _RawWatch] = {}
        # Goes on after a fork: an id of the parent's must not cancel a watch of the child's.
        self._ids = itertools.count(1)
        forking.track(self)

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for a watch to become live; None waits for ever."""
        return self._patience.seconds

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._patience.seconds = value

    def add_callback(
        self,
        key: str | bytes,
        callback: Callback,
        range_end: str | bytes | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> int:
        """Call ``callback`` for every response; wait until the watch is live.

        Callbacks run one after another, on a thread of the dispatcher, and may cancel their own
        watch or add others. The last call may be an error in place of a response: etcd3's
        ``RevisionCompactedError``, or :class:`EtcdError` (the client was closed, the store was
        reset, a permission is missing). An outage of etcd is no end.

        Args:
            key: The key, or the start of the range.
            callback: What to call.
            range_end: The exclusive end of the range.
            start_revision: The first revision wanted; None is "from now".
            progress_notify: Also call it, with no events, when etcd tells its progress.
            filters: ``WatchCreateRequest.NOPUT`` and ``NODELETE``.
            prev_kv: Ask for the values before each event.

        Returns:
            An id for :meth:`cancel`.

        Raises:
            WatchTimedOut: etcd did not answer within :attr:`timeout`; the watch is cancelled.
            RevisionCompactedError: As above.
            EtcdError: As above.
        """
        scope = self._scope()
        start = to_bytes(key)
        what = f"watch {start.decode(errors='backslashreplace')!r}"
        strand = scope.engine.dispatcher.strand(f"raw {what}")
        watch_id = next(self._ids)
        watch = _RawWatch(strand, callback, progress_notify, partial(self._pop, watch_id))
        with self._lock:
            self._watches[watch_id] = watch
        begin = partial(
            scope.engine.hub.watch,
            start,
            range_end=to_bytes(range_end or b""),
            start_revision=start_revision or 0,
            prev_kv=prev_kv,
            filters=tuple(filters or ()),
        )
        try:
            scope.hold(self, what)
            watch.start(begin)
            watch.wait_created(self.timeout)
        except BaseException:
            self.cancel(watch_id)
            raise
        return watch_id

    def cancel(self, watch_id: int) -> None:
        """End a watch; idempotent.

        No callback runs after the return, unless this was called from one. Waits for a callback
        that is running now, five seconds at most.
        """
        watch = self._pop(watch_id)
        if watch is not None:
            watch.cancel()

    def close_with_client(self, timeout: float) -> None:
        """Tell every watch that the client is closed."""
        with self._lock:
            watches = list(self._watches.values())
        error = "watch: the client is closed"
        ended = [watch for watch in watches if watch.end(ClosedError(error))]
        # The dispatcher stops next, and what waits in it is dropped then.
        deadline = time.monotonic() + min(timeout, _LAST_WORD_SECONDS)
        for watch in ended:
            watch.wait_told(max(0.0, deadline - time.monotonic()))

    def after_fork_in_child(self) -> None:
        """Forget the parent's watches."""
        self._lock = threading.Lock()
        self._watches = {}

    def _pop(self, watch_id: int) -> _RawWatch | None:
        with self._lock:
            return self._watches.pop(watch_id, None)


def _for_etcd3(error: EtcdError) -> Exception:
    if not isinstance(error, Compacted):
        return error
    compacted = RevisionCompactedError(error.compact_revision)
    compacted.__cause__ = error
    return compacted
