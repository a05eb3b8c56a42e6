"""`client.raw`: `etcd3.Etcd3Client` on our channel, for everything else that etcd can do.

Owns nothing but its settings: requests go through the client's channel and watches through its hub,
of whichever process asks. Corrects what etcd3 0.12 gets wrong where its users would not notice
(semantics section 12). Any thread may use it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import grpc
from etcd3 import Etcd3Client, etcdrpc
from etcd3 import Lock as Etcd3Lock
from etcd3.client import KVMetadata, Transactions
from etcd3.events import Event
from etcd3.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    Etcd3Exception,
    InternalServerError,
    PreconditionFailedError,
    RevisionCompactedError,
    WatchTimedOut,
)
from etcd3.leases import Lease
from etcd3.transactions import BaseCompare, Delete, Get, Put, Txn
from etcd3.utils import to_bytes
from etcd3.watch import WatchResponse
from typing_extensions import TypedDict, Unpack

from ..errors import ClosedError, EtcdError, LockTimeout
from ..keys import prefix_range_end
from .raw_channel import Patience, RoutedChannel
from .raw_watch import Callback, RawWatcher

if TYPE_CHECKING:
    from ..engine import Scope

Text: TypeAlias = str | bytes
SortOrder: TypeAlias = Literal["ascend", "descend"]
SortTarget: TypeAlias = Literal["key", "version", "create", "mod", "value"]
Operation: TypeAlias = Put | Get | Delete | Txn
Pair: TypeAlias = tuple[bytes, KVMetadata]

_SORT_ORDERS: dict[str | None, int] = {
    None: etcdrpc.RangeRequest.NONE,
    "ascend": etcdrpc.RangeRequest.ASCEND,
    "descend": etcdrpc.RangeRequest.DESCEND,
}
_SORT_TARGETS: dict[str | None, int] = {
    None: etcdrpc.RangeRequest.KEY,
    "key": etcdrpc.RangeRequest.KEY,
    "version": etcdrpc.RangeRequest.VERSION,
    "create": etcdrpc.RangeRequest.CREATE,
    "mod": etcdrpc.RangeRequest.MOD,
    "value": etcdrpc.RangeRequest.VALUE,
}
_ENTER_SECONDS = 10.0


class Comparison(Protocol):
    """What a transaction compares: etcd3's comparisons, and ``guard()`` of a lock or election."""

    def build_message(self) -> etcdrpc.Compare:
        """Return the wire message."""


class ReadOptions(TypedDict, total=False):
    """Which version of a key is read. etcd3 alone drops these."""

    revision: int | None
    min_mod_revision: int | None
    max_mod_revision: int | None
    min_create_revision: int | None
    max_create_revision: int | None


class RangeOptions(ReadOptions, total=False):
    """How much of a range is read."""

    serializable: bool
    limit: int | None
    count_only: bool | None


class SortedOptions(RangeOptions, total=False):
    """How a range is read."""

    sort_order: SortOrder | None
    sort_target: SortTarget | None
    keys_only: bool


class WatchOptions(TypedDict, total=False):
    """What a watch delivers."""

    start_revision: int | None
    progress_notify: bool
    filters: Iterable[int] | None
    prev_kv: bool


class RawClient(Etcd3Client):
    """An ``etcd3.Etcd3Client`` on the channel of a :class:`~etcd_core.Client`.

    Making it does no I/O. Safe to use from any thread, and in a forked child. It differs from
    etcd3's own in this:

    - Calls fail over to other endpoints, log in again when the token has expired, and are bounded
      by :attr:`timeout`. Reads are repeated after a lost answer; writes are not, since the first
      copy may be applied still.
    - Watches go on after an outage, with every event once. They end with an error or by
      ``cancel()``, never silently.
    - All options of the reads are honoured, prefixes end where they should, and a missing list in a
      transaction is an empty one.
    - :meth:`close` and leaving a ``with`` block do nothing: the client closes the channel.

    Errors are etcd3's (``ConnectionFailedError``, ``ConnectionTimeoutError``,
    ``PreconditionFailedError``, ``InternalServerError``), else ``grpc.RpcError``; and
    :class:`ClosedError` once the client is closed.

    Args:
        scope: Gives this process's scope of the client.
    """

    def __init__(self, scope: Callable[[], Scope]) -> None:
        # Not etcd3's constructor: that opens a channel of its own and logs in.
        self._scope = scope
        self._patience = Patience(scope)
        self.channel = cast(grpc.Channel, RoutedChannel(scope, self._patience))
        self.metadata = None
        self.call_credentials = None
        self.auth_stub = etcdrpc.AuthStub(self.channel)
        self.kvstub = etcdrpc.KVStub(self.channel)
        self.clusterstub = etcdrpc.ClusterStub(self.channel)
        self.leasestub = etcdrpc.LeaseStub(self.channel)
        self.maintenancestub = etcdrpc.MaintenanceStub(self.channel)
        self.watcher: RawWatcher = RawWatcher(scope, self._patience)
        self.transactions = Transactions()

    @property
    def timeout(self) -> float | None:
        """Seconds for one call, ``Config.timeout`` unless set; None waits for ever.

        It bounds a snapshot, a defragmentation and a physical compaction too: raise it for a large
        store.
        """
        return self._patience.seconds

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._patience.seconds = value

    @property
    def uses_secure_channel(self) -> bool:  # type: ignore[override]
        """Whether the client uses TLS."""
        return self._scope().engine.config.effective_tls is not None

    def close(self) -> None:
        """Do nothing: the channel is the client's."""

    # -- reads ---------------------------------------------------------------------------------

    def get_response(
        self, key: Text, serializable: bool = False, **options: Unpack[ReadOptions]
    ) -> etcdrpc.RangeResponse:
        """Read one key and return etcd's whole answer."""
        return self._range(self._build_get_range_request(key, serializable=serializable, **options))

    def get(
        self, key: Text, *, serializable: bool = False, **options: Unpack[ReadOptions]
    ) -> Pair | tuple[None, None]:
        """Return the value of a key and what etcd knows about it, or ``(None, None)``.

        Args:
            key: The key.
            serializable: Take the answer of one member, possibly stale; works without quorum.
            **options: ``revision`` to read the past; bounds on the key's revisions.
        """
        response = self.get_response(key, serializable, **options)
        # Not by the count: etcd counts before it applies the bounds.
        return next(_pairs(response), (None, None))

    def get_prefix_response(
        self, key_prefix: Text, **options: Unpack[SortedOptions]
    ) -> etcdrpc.RangeResponse:
        """Read all keys with a prefix and return etcd's whole answer."""
        start, end = _prefix_range(key_prefix)
        return self.get_range_response(start, end, **options)

    def get_prefix(self, key_prefix: Text, **options: Unpack[SortedOptions]) -> Iterator[Pair]:
        """Read all keys with a prefix; options as :meth:`get_range_response`."""
        return _pairs(self.get_prefix_response(key_prefix, **options))

    def get_range_response(
        self,
        range_start: Text,
        range_end: Text,
        sort_order: SortOrder | None = None,
        sort_target: SortTarget | None = "key",
        *,
        keys_only: bool = False,
        **options: Unpack[RangeOptions],
    ) -> etcdrpc.RangeResponse:
        """Read a range of keys and return etcd's whole answer.

        Args:
            range_start: The first key.
            range_end: The exclusive end.
            sort_order: ``"ascend"`` or ``"descend"``.
            sort_target: What to sort by.
            keys_only: Leave the values out.
            **options: ``serializable``, ``limit``, ``count_only``, ``revision`` to read the past,
                and bounds on the keys' revisions.
        """
        return self._range(
            self._build_get_range_request(
                range_start,
                range_end,
                sort_order=sort_order,
                sort_target=sort_target,
                keys_only=keys_only,
                **options,
            )
        )

    def get_range(
        self, range_start: Text, range_end: Text, **options: Unpack[SortedOptions]
    ) -> Iterator[Pair]:
        """Read a range of keys; options as :meth:`get_range_response`."""
        return _pairs(self.get_range_response(range_start, range_end, **options))

    def get_all_response(
        self,
        sort_order: SortOrder | None = None,
        sort_target: SortTarget | None = "key",
        keys_only: bool = False,
        **options: Unpack[RangeOptions],
    ) -> etcdrpc.RangeResponse:
        """Read every key and return etcd's whole answer; options as :meth:`get_range_response`."""
        return self.get_range_response(
            b"\0", b"\0", sort_order, sort_target, keys_only=keys_only, **options
        )

    def get_all(self, **options: Unpack[SortedOptions]) -> Iterator[Pair]:
        """Read every key; options as :meth:`get_range_response`."""
        return _pairs(self.get_all_response(**options))

    def _range(self, request: etcdrpc.RangeRequest) -> etcdrpc.RangeResponse:
        with _etcd3_errors():
            return self.kvstub.Range(request, self.timeout)

    def _build_get_range_request(
        self,
        key: Text,
        range_end: Text | None = None,
        limit: int | None = None,
        revision: int | None = None,
        sort_order: str | None = None,
        sort_target: str | None = "key",
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool | None = None,
        min_mod_revision: int | None = None,
        max_mod_revision: int | None = None,
        min_create_revision: int | None = None,
        max_create_revision: int | None = None,
    ) -> etcdrpc.RangeRequest:
        if sort_order not in _SORT_ORDERS:
            raise ValueError(f"sort_order {sort_order!r} is neither 'ascend' nor 'descend'")
        if sort_target not in _SORT_TARGETS:
            raise ValueError(f"sort_target {sort_target!r} is not what etcd can sort by")
        return etcdrpc.RangeRequest(
            key=to_bytes(key),
            range_end=None if range_end is None else to_bytes(range_end),
            limit=limit,
            revision=revision,
            sort_order=_SORT_ORDERS[sort_order],
            sort_target=_SORT_TARGETS[sort_target],
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )

    # -- writes --------------------------------------------------------------------------------

    def delete_prefix(self, prefix: Text) -> etcdrpc.DeleteRangeResponse:
        """Delete all keys with a prefix."""
        start, end = _prefix_range(prefix)
        with _etcd3_errors():
            return self.kvstub.DeleteRange(
                etcdrpc.DeleteRangeRequest(key=start, range_end=end), self.timeout
            )

    def transaction(
        self,
        compare: Iterable[BaseCompare | Comparison] | None,
        success: Iterable[Operation] | None = None,
        failure: Iterable[Operation] | None = None,
    ) -> tuple[bool, list[etcdrpc.ResponseOp | list[Pair]]]:
        """Do ``success`` if everything in ``compare`` holds, else ``failure``: one revision.

        Args:
            compare: Comparisons of :attr:`transactions`, and ``guard()`` of a lock or an election.
            success: Operations of :attr:`transactions`, transactions among them.
            failure: The same. None, in any place, is an empty list.

        Returns:
            Whether the comparisons held, and one answer per operation done.
        """
        compares = cast("Iterable[BaseCompare]", () if compare is None else compare)
        return super().transaction(compares, success, failure)

    def _ops_to_requests(self, ops: Iterable[Operation] | None) -> list[etcdrpc.RequestOp]:
        # etcd3 comes through here for nested transactions too.
        build: Callable[[Iterable[Operation]], list[etcdrpc.RequestOp]]
        build = super()._ops_to_requests  # type: ignore[misc]
        return build(() if ops is None else ops)

    # -- leases and locks ----------------------------------------------------------------------

    def refresh_lease(self, lease_id: int) -> Iterator[etcdrpc.LeaseKeepAliveResponse]:
        """Renew a lease once; a TTL of 0 in the answer means that the lease is gone."""
        # A sequence, so that the request can be sent again to another endpoint.
        requests = (etcdrpc.LeaseKeepAliveRequest(ID=lease_id),)
        with _etcd3_errors():
            yield from self.leasestub.LeaseKeepAlive(
                cast("Iterator[etcdrpc.LeaseKeepAliveRequest]", requests), self.timeout
            )

    def lock(self, name: str, ttl: int = 60) -> RawLock:
        """Return etcd3's lock. Prefer :meth:`etcd_core.Client.lock`; see :class:`RawLock`."""
        return RawLock(name, ttl=ttl, etcd_client=self)

    # -- watches -------------------------------------------------------------------------------

    def add_watch_prefix_callback(
        self, key_prefix: Text, callback: Callback, **options: Unpack[WatchOptions]
    ) -> int:
        """Call ``callback`` for every response of a watch; see :meth:`RawWatcher.add_callback`."""
        start, end = _prefix_range(key_prefix)
        return self.add_watch_callback(start, callback, range_end=end, **options)

    def watch_response(
        self, key: Text, *, range_end: Text | None = None, **options: Unpack[WatchOptions]
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]:
        """Watch a key or a range; wait until the watch is live.

        Returns:
            An iterator over the responses, which ends after ``cancel()`` and raises the error that
            ends the watch; and ``cancel``, which any thread may call. Responses that nobody takes
            wait in memory, so cancel what is no longer read.

        Raises:
            WatchTimedOut: etcd did not answer within :attr:`timeout`.
            EtcdError: The watch was refused, or the client is closed.
        """
        responses, cancel = super().watch_response(key, range_end=range_end, **options)
        return _in_this_process(responses, os.getpid()), cancel

    def watch_prefix_response(
        self, key_prefix: Text, **options: Unpack[WatchOptions]
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]:
        """Watch all keys with a prefix, as :meth:`watch_response`."""
        start, end = _prefix_range(key_prefix)
        return self.watch_response(start, range_end=end, **options)

    def watch_prefix(
        self, key_prefix: Text, **options: Unpack[WatchOptions]
    ) -> tuple[Iterator[Event], Callable[[], None]]:
        """Watch all keys with a prefix, as :meth:`watch`."""
        start, end = _prefix_range(key_prefix)
        return self.watch(start, range_end=end, **options)

    def watch_once_response(
        self,
        key: Text,
        timeout: float | None = None,
        *,
        range_end: Text | None = None,
        **options: Unpack[WatchOptions],
    ) -> WatchResponse:
        """Return the first response of a watch.

        Args:
            key: The key, or the start of the range.
            timeout: Seconds to wait; None waits for ever.
            range_end: The exclusive end of the range.
            **options: As :meth:`watch_response`.

        Raises:
            WatchTimedOut: Nothing happened in time.
            RevisionCompactedError: The start revision has been compacted.
            EtcdError: The watch ended otherwise.
        """
        first: WatchResponse | Exception = super().watch_once_response(
            key, timeout, range_end=range_end, **options
        )
        if isinstance(first, Exception):
            raise first
        return first

    def watch_once(
        self,
        key: Text,
        timeout: float | None = None,
        *,
        range_end: Text | None = None,
        **options: Unpack[WatchOptions],
    ) -> Event:
        """Return the first event of a watch, as :meth:`watch_once_response`."""
        # A response about progress has no event to return.
        options["progress_notify"] = False
        return super().watch_once(key, timeout, range_end=range_end, **options)

    def watch_prefix_once_response(
        self, key_prefix: Text, timeout: float | None = None, **options: Unpack[WatchOptions]
    ) -> WatchResponse:
        """Return the first response of a watch of a prefix, as :meth:`watch_once_response`."""
        start, end = _prefix_range(key_prefix)
        return self.watch_once_response(start, timeout, range_end=end, **options)

    def watch_prefix_once(
        self, key_prefix: Text, timeout: float | None = None, **options: Unpack[WatchOptions]
    ) -> Event:
        """Return the first event of a watch of a prefix, as :meth:`watch_once_response`."""
        start, end = _prefix_range(key_prefix)
        return self.watch_once(start, timeout, range_end=end, **options)


class RawLock(Etcd3Lock):
    """etcd3's lock: one shared key, not renewed, not fair. Prefer :meth:`etcd_core.Client.lock`.

    It contends with etcd3's lock of the same name. Unlike that, ``with`` never runs its block
    without the lock, a wait sees every release, and a failed try leaves no lease behind.
    """

    def acquire(self, timeout: float | None = _ENTER_SECONDS) -> bool:
        """Wait for the lock.

        Args:
            timeout: Seconds to wait; 0 tries once, None waits for ever.

        Returns:
            Whether it is held now.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while (taken_at := self._try()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._await_release(taken_at, None if math.isinf(left) else left)
        return True

    def __enter__(self) -> RawLock:
        """Acquire the lock within ten seconds.

        Raises:
            LockTimeout: Somebody else holds it still.
        """
        if not self.acquire(_ENTER_SECONDS):
            raise LockTimeout(f"raw lock {self.name!r}: not acquired in {_ENTER_SECONDS:g} s")
        return self

    def _try(self) -> int | None:
        """Take the lock if it is free, else return a revision at which it was not."""
        raw = self.etcd_client
        lease = raw.lease(self.ttl)
        done = False
        try:
            done, answers = raw.transaction(
                compare=[raw.transactions.create(self.key) == 0],
                success=[raw.transactions.put(self.key, self.uuid, lease=lease)],
                failure=[raw.transactions.get(self.key)],
            )
        finally:
            # Also where the answer was lost: the key may be there, and would stay for the TTL.
            if not done:
                _drop(lease)
        self.lease = lease if done else None
        return None if done else _revision_of(answers)

    def _await_release(self, taken_at: int, seconds: float | None) -> None:
        # A compacted revision means that much has happened: look again.
        with suppress(WatchTimedOut, RevisionCompactedError):
            self.etcd_client.watch_once(
                self.key,
                seconds,
                start_revision=taken_at + 1,
                filters=[etcdrpc.WatchCreateRequest.NOPUT],
            )


@contextmanager
def _etcd3_errors() -> Iterator[None]:
    """Turn gRPC's errors into those that etcd3's own methods raise; ours stay."""
    try:
        yield
    except grpc.RpcError as exc:
        kind = _ERRORS.get(cast(grpc.Call, exc).code())
        if kind is None:
            raise
        raise kind from exc


_ERRORS: dict[grpc.StatusCode, type[Etcd3Exception]] = {
    grpc.StatusCode.INTERNAL: InternalServerError,
    grpc.StatusCode.UNAVAILABLE: ConnectionFailedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: ConnectionTimeoutError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionFailedError,
}


def _prefix_range(prefix: Text) -> tuple[bytes, bytes]:
    # etcd refuses an empty key; NUL is the smallest one.
    start = to_bytes(prefix)
    return start or b"\0", prefix_range_end(start)


def _pairs(response: etcdrpc.RangeResponse) -> Iterator[Pair]:
    for kv in response.kvs:
        yield kv.value, KVMetadata(kv, response.header)


def _in_this_process(responses: Iterator[WatchResponse], pid: int) -> Iterator[WatchResponse]:
    """Yield the responses of a watch; in a forked child nobody would ever fill its queue."""
    while os.getpid() == pid:
        response = next(responses, None)
        if response is None:
            return
        yield response
    raise ClosedError("watch: it belongs to the process that was forked")


def _revision_of(answers: list[etcdrpc.ResponseOp | list[Pair]]) -> int:
    found = cast("list[Pair]", answers[0])
    _value, metadata = found[0]
    return metadata.response_header.revision


def _drop(lease: Lease) -> None:
    with suppress(Etcd3Exception, grpc.RpcError, EtcdError):
        lease.revoke()
