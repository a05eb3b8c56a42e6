"""One write to a configuration: a transaction that is guarded by what was read before it.

Plans are data, made without I/O; a :class:`Writer` sends them in its caller's thread. The guard is
what makes a write exactly-once: a copy that arrives late, or twice, finds it broken.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from .config import Timeout
from .errors import Conflict, EtcdError, OutcomeUnknown, RequestTooLarge
from .keys import prefix_range_end
from .mirror import View, read_range
from .wire import messages as pb
from .wire.channel import Backoff, Channel
from .wire.rpc import RANGE, TXN

MAX_REQUEST_BYTES: Final = 1_572_864
"""etcd's default limit on one request (``--max-request-bytes``)."""

MAX_OPERATIONS: Final = 128
"""etcd's default limit on the operations of one transaction (``--max-txn-ops``)."""

# etcd measures the request inside an envelope of its own, with an id and the user's name.
_ENVELOPE_BYTES: Final = 64
# The larger of compares and operations, summed over the levels of a nested transaction, is bounded
# by MAX_OPERATIONS: 65 + 63, or 65 + 31 + 32. One of the 65 is left for the count of keys.
_ROOT_SLOTS: Final = 65
_TWO_LEVELS: Final = (64, 63)
_THREE_LEVELS: Final = (64, 31, 32)

_RESERVE_SECONDS: Final = 1.0

_VERIFY = replace(TXN, idempotent=True, write=False)


Wanted: TypeAlias = dict[bytes, bytes | None]
"""What a write answers for: keys with the bytes they shall hold, or None for none."""


class Claim(NamedTuple):
    """The keys that a write answers for, and how far others' changes are its business.

    Attributes:
        wanted: The keys and their bytes to be.
        whole: Every change under the prefix since the base is a conflict.
        ranges: Ranges in which every addition and edit is one, where it is not the whole prefix.
    """

    wanted: Wanted
    whole: bool
    ranges: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True)
class Plan:
    """One transaction, and what it takes to tell from a later view whether it was applied."""

    base: View
    wanted: Wanted
    writes: Sequence[bytes]
    request: pb.TxnRequest
    counts: bool

    def is_applied_in(self, view: View) -> bool:
        """Tell whether the store holds what was to be written."""
        return all(_bytes_of(view, key) == raw for key, raw in self.wanted.items())

    def is_untouched_in(self, view: View) -> bool:
        """Tell whether the keys are as they were before the write."""
        return all(_mod_of(view, key) == _mod_of(self.base, key) for key in self.wanted)

    def revision_in(self, view: View) -> int:
        """Return the revision of the write, given that it was applied."""
        # A deleted key has no revision left to read; the view's is the nearest later one.
        return max((_mod_of(view, key) for key in self.writes), default=0) or view.revision


def _bytes_of(view: View, key: bytes) -> bytes | None:
    entry = view.entries.get(key)
    return None if entry is None else entry.value


def _mod_of(view: View, key: bytes) -> int:
    entry = view.entries.get(key)
    return 0 if entry is None else entry.mod_revision


def make_plan(base: View, claim: Claim, prefix: bytes) -> Plan:
    """Return the transaction that takes ``base`` to what ``claim`` wants, writing what differs."""
    wanted = claim.wanted
    writes = [key for key, raw in wanted.items() if _bytes_of(base, key) != raw]
    flat = len(writes) < MAX_OPERATIONS
    room = MAX_OPERATIONS if flat else _ROOT_SLOTS
    # One more than there is room for, and not one for each of ten thousand keys.
    compares = list(itertools.islice(_guard(base, claim, writes, prefix, room), room + 1))
    operations = [_operation(key, wanted[key]) for key in writes]
    if not flat:
        operations = _nested(
            operations,
            _TWO_LEVELS if len(writes) <= math.prod(_TWO_LEVELS) else _THREE_LEVELS,
        )
    counts = len(compares) > room
    if counts:
        operations.insert(0, _count_keys(prefix))
    request = pb.TxnRequest(compare=compares[:room], success=operations)
    return Plan(base, wanted, writes, request, counts)


def _guard(
    base: View, claim: Claim, writes: Sequence[bytes], prefix: bytes, room: int
) -> Iterator[pb.Compare]:
    """Yield the compares that fail when somebody else wrote since ``base``, best first.

    The one over the range sees edits and additions; a deletion only shows at the key itself.
    """
    keys = dict.fromkeys([*writes, *claim.wanted])
    if not claim.whole and len(keys) + len(claim.ranges) <= room:
        yield from (_no_newer(key, end, base.revision) for key, end in claim.ranges)
        yield from (_unchanged(base, key) for key in keys)
        return
    yield _range_guard(base, prefix)
    yield from (_unchanged(base, key) for key in keys if key in base.entries)


def _range_guard(base: View, prefix: bytes) -> pb.Compare:
    end = prefix_range_end(prefix)
    if base.entries:
        return _no_newer(prefix, end, base.revision)
    # True of an empty range only; unlike a revision, that also holds after the store was reset.
    return pb.Compare(
        key=prefix,
        range_end=end,
        target=pb.Compare.CREATE,
        result=pb.Compare.EQUAL,
        create_revision=0,
    )


def _no_newer(key: bytes, range_end: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key,
        range_end=range_end,
        target=pb.Compare.MOD,
        result=pb.Compare.LESS,
        mod_revision=revision + 1,
    )


def _unchanged(base: View, key: bytes) -> pb.Compare:
    return pb.Compare(
        key=key,
        target=pb.Compare.MOD,
        result=pb.Compare.EQUAL,
        mod_revision=_mod_of(base, key),
    )


def _operation(key: bytes, raw: bytes | None) -> pb.RequestOp:
    if raw is None:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=raw))


def _count_keys(prefix: bytes) -> pb.RequestOp:
    """Return the operation that, put first, tells whether keys without a compare had vanished."""
    counting = pb.RangeRequest(key=prefix, range_end=prefix_range_end(prefix), count_only=True)
    return pb.RequestOp(request_range=counting)


def _nested(operations: list[pb.RequestOp], widths: Sequence[int]) -> list[pb.RequestOp]:
    if len(widths) == 1:
        return operations
    size = math.prod(widths[1:])
    groups = (operations[i : i + size] for i in range(0, len(operations), size))
    return [
        pb.RequestOp(request_txn=pb.TxnRequest(success=_nested(group, widths[1:])))
        for group in groups
    ]


class Outcome(NamedTuple):
    """How a write ended: at which revision, and whether keys beyond its compares had vanished."""

    revision: int
    incomplete: bool = False


class Writer:
    """The requests of one save, update or bootstrap, all within one deadline."""

    def __init__(
        self, channel: Channel, prefix: bytes, what: str, timeout: Timeout, user: str | None
    ) -> None:
        self._channel = channel
        self._prefix = prefix
        self._what = what
        self._deadline = channel.deadline(timeout)
        self._max_bytes = MAX_REQUEST_BYTES - _ENVELOPE_BYTES - len((user or "").encode())
        self._backoff = Backoff()

    def read(self) -> View:
        """Read the configuration. One request."""
        end = prefix_range_end(self._prefix)
        return read_range(
            self._channel, self._prefix, end, what=self._what, timeout=self._seconds_left()
        )

    def verify(self, plan: Plan) -> int:
        """Check that nothing changed since the plan's base; return the revision of the check.

        Raises:
            Conflict: Something did.
        """
        self._check_size(plan)
        answer = self._channel.unary(
            _VERIFY, plan.request, what=self._what, timeout=self._seconds_left()
        )
        if not answer.succeeded or self._keys_vanished(plan, answer):
            raise self._conflict(plan)
        return answer.header.revision

    def commit(self, plan: Plan) -> Outcome:
        """Send the transaction, exactly once in effect, and return how it ended.

        Raises:
            Conflict: Its guard failed; nothing was written.
            OutcomeUnknown: No answer came, and the store does not tell what became of it.
            RequestTooLarge: It exceeds etcd's limits; nothing was sent.
            EtcdError: It could not be sent, or was refused.
        """
        self._check_size(plan)
        doubt: OutcomeUnknown | None = None
        while True:
            try:
                answer = self._send(plan)
            except OutcomeUnknown as exc:
                doubt = exc
                applied = self._settle(plan, exc)
                if applied is not None:
                    return applied
                # Sending it again is safe: if the first copy arrives late, one guard fails.
                self.pause(exc)
                continue
            except EtcdError as exc:
                # "Not sent" is true of this copy only.
                raise (doubt or exc) from None
            if answer.succeeded:
                return Outcome(answer.header.revision, self._keys_vanished(plan, answer))
            # The guard may have failed on the first copy of this very transaction.
            applied = None if doubt is None else self._settle(plan, doubt)
            if applied is not None:
                return applied
            raise self._conflict(plan)

    def pause(self, error: EtcdError) -> None:
        """Wait a moment before the next try; raise ``error`` when no time is left for one."""
        delay = self._backoff.next()
        if time.monotonic() + delay >= self._deadline:
            raise error
        self._channel.pause(delay)

    def vanished(self, plan: Plan, revision: int) -> list[bytes]:
        """Return the keys of the plan that somebody deleted between its base and ``revision``."""
        request = pb.RangeRequest(
            key=self._prefix,
            range_end=prefix_range_end(self._prefix),
            keys_only=True,
            revision=revision - 1,
        )
        answer = self._channel.unary(RANGE, request, what=self._what, timeout=self._seconds_left())
        there = {kv.key for kv in answer.kvs}
        return [key for key in plan.wanted if key in plan.base.entries and key not in there]

    def _send(self, plan: Plan) -> pb.TxnResponse:
        seconds = self._seconds_left()
        if seconds is not None:
            # What is left must do for a look at the store, should the answer be missing.
            seconds -= min(_RESERVE_SECONDS, seconds / 4)
        return self._channel.unary(TXN, plan.request, what=self._what, timeout=seconds)

    def _settle(self, plan: Plan, doubt: OutcomeUnknown) -> Outcome | None:
        """Find out what became of an unanswered transaction; None: it has changed nothing yet."""
        try:
            view = self.read()
        except EtcdError as exc:
            raise doubt from exc
        if plan.is_applied_in(view):
            return Outcome(plan.revision_in(view))
        if plan.is_untouched_in(view):
            return None
        raise OutcomeUnknown(
            f"{self._what}: no answer, and the configuration has been changed since by somebody"
            f" else; it may have been applied before that"
        ) from doubt

    def _check_size(self, plan: Plan) -> None:
        size = plan.request.ByteSize()
        if size > self._max_bytes:
            raise RequestTooLarge(
                f"{self._what}: the change takes {size} bytes; etcd's limit is {self._max_bytes}"
                f" (max-request-bytes {MAX_REQUEST_BYTES}). Nothing was written"
            )
        most = math.prod(_THREE_LEVELS)
        if len(plan.writes) > most:
            raise RequestTooLarge(
                f"{self._what}: the change has {len(plan.writes)} operations; {most} is the limit"
                f" (max-txn-ops {MAX_OPERATIONS}). Nothing was written"
            )

    def _conflict(self, plan: Plan) -> Conflict:
        return Conflict(
            f"{self._what}: the stored configuration changed after revision {plan.base.revision};"
            f" nothing was written"
        )

    @staticmethod
    def _keys_vanished(plan: Plan, answer: pb.TxnResponse) -> bool:
        # The guard held, so nothing was added: a smaller count can only come from deletions.
        return plan.counts and answer.responses[0].response_range.count != len(plan.base.entries)

    def _seconds_left(self) -> float | None:
        seconds = self._deadline - time.monotonic()
        return None if math.isinf(seconds) else max(seconds, 0.001)
