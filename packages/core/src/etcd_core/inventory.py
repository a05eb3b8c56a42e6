"""What lives under a client's prefix: services, elections, locks, configurations. Read-only.

For command lines and status pages; each call is one consistent read. Thread-safe, blocks, no state.
Values are as stored: :mod:`.masking` hides secrets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .client import Client
from .config import UNSET, Timeout
from .descriptor import Descriptor
from .errors import DecodeError
from .keys import is_queue_key, join, prefix_range_end
from .mirror import Entry, read_range
from .sharing import DRAINING
from .snapshot import LeafDecoder, LeafTable
from .wire import messages as pb
from .wire.rpc import RANGE, Rpc

Kind = Literal["services", "elections", "locks", "config"]

_TIME_TO_LIVE: Rpc[pb.LeaseTimeToLiveRequest, pb.LeaseTimeToLiveResponse] = Rpc(
    "Lease/LeaseTimeToLive", idempotent=True
)


@dataclass(frozen=True)
class Instance:
    """One registered instance.

    Attributes:
        service: The service's name.
        id: The instance's, as its key says.
        info: The descriptor; None if the stored value is malformed.
        trouble: Why there is no descriptor; without the value.
        key: The etcd key.
        lease_id: The lease it hangs on; 0 for none, so that it stays until somebody deletes it.
        created: The revision at which it appeared.
        revision: When it was last written.
    """

    service: str
    id: str
    info: Descriptor | None
    trouble: str
    key: str
    lease_id: int
    created: int
    revision: int

    @property
    def draining(self) -> bool:
        """Whether it asks for no new requests, since it is about to stop."""
        return self.info is not None and self.info.metadata.get("status") == DRAINING


@dataclass(frozen=True)
class Contender:
    """Who holds a lock, leads, or waits to.

    Attributes:
        identity: What a candidate calls itself; for a lock, its lease in hex.
        lease_id: The lease its key hangs on.
        token: The revision of its key: its place in the queue, and its fencing token once first.
    """

    identity: str
    lease_id: int
    token: int


@dataclass(frozen=True)
class Queue:
    """A lock or an election: the first contender holds it, the others wait in this order.

    Attributes:
        name: As given to ``lock`` or ``campaign``.
        contenders: At least one.
    """

    name: str
    contenders: Sequence[Contender]

    @property
    def first(self) -> Contender:
        """Who holds the lock, or leads."""
        return self.contenders[0]

    @property
    def waiting(self) -> Sequence[Contender]:
        """Who is in line behind."""
        return self.contenders[1:]


@dataclass(frozen=True)
class StoredConfig:
    """A configuration.

    Attributes:
        name: Its name.
        leaves: How many keys it has.
        revision: When it was last written; deletions do not show.
        table: What the leaves decode to.
    """

    name: str
    leaves: int
    revision: int
    table: LeafTable


@dataclass(frozen=True)
class LeaseTime:
    """How a lease stands.

    Attributes:
        granted: Its TTL in seconds.
        remaining: Seconds until it expires unless it is renewed; negative when it has.
    """

    granted: int
    remaining: int

    @property
    def renewed(self) -> int:
        """Seconds since it was last renewed, or granted."""
        return max(0, self.granted - self.remaining)

    @property
    def late(self) -> bool:
        """Whether a renewal is overdue: they are sent every third of the TTL.

        etcd tells whole seconds, rounded down.
        """
        return self.remaining + 1 <= self.granted / 2


@dataclass(frozen=True)
class Excerpt:
    """The first keys of one kind, at one revision.

    Attributes:
        revision: Of the store.
        entries: What was read, by the part of the key behind the kind, in its order.
        total: How many keys there are.
    """

    revision: int
    entries: Sequence[tuple[str, Entry]]
    total: int


def read_services(client: Client, *, timeout: Timeout = UNSET) -> Mapping[str, Sequence[Instance]]:
    """Return the instances of every service, by name.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return services_in(_read_all(client, "services", timeout))


def read_elections(client: Client, *, timeout: Timeout = UNSET) -> Sequence[Queue]:
    """Return every election that has a leader.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return queues_in(_read_all(client, "elections", timeout))


def read_locks(client: Client, *, timeout: Timeout = UNSET) -> Sequence[Queue]:
    """Return every lock that is held.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return queues_in(_read_all(client, "locks", timeout))


def read_configs(client: Client, *, timeout: Timeout = UNSET) -> Sequence[StoredConfig]:
    """Return the configurations that are stored.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return configs_in(_read_all(client, "config", timeout))


def read_excerpt(
    client: Client, kind: Kind, *, most: int, revision: int = 0, timeout: Timeout = UNSET
) -> Excerpt:
    """Return the first ``most`` keys of a kind, in one request.

    Args:
        client: Whose prefix to read.
        kind: What to read.
        most: How many keys at most.
        revision: Read the state at this revision; 0 is the newest.
        timeout: Seconds.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    start = _start(client, kind)
    answer = client.scope().engine.channel.unary(
        RANGE,
        pb.RangeRequest(
            key=start, range_end=prefix_range_end(start), limit=most, revision=revision
        ),
        what=f"read {start.decode()!r}",
        timeout=timeout,
    )
    entries = [(_rest(kv.key, start), Entry.of(kv)) for kv in answer.kvs]
    return Excerpt(revision or answer.header.revision, entries, answer.count)


def read_lease_time(client: Client, lease_id: int, *, timeout: Timeout = UNSET) -> LeaseTime:
    """Ask how a lease stands: one request.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    answer = client.scope().engine.channel.unary(
        _TIME_TO_LIVE,
        pb.LeaseTimeToLiveRequest(ID=lease_id),
        what=f"look at lease {lease_id:x}",
        timeout=timeout,
    )
    return LeaseTime(answer.grantedTTL, answer.TTL)


def services_in(entries: Iterable[tuple[str, Entry]]) -> Mapping[str, Sequence[Instance]]:
    """Return the instances among what was read of ``services``, by the service's name. Pure."""
    found: dict[str, list[Instance]] = {}
    for path, entry in entries:
        name, slash, instance_id = path.partition("/")
        if slash and "/" not in instance_id:
            found.setdefault(name, []).append(_instance(name, instance_id, entry))
    return dict(sorted(found.items()))


def queues_in(entries: Iterable[tuple[str, Entry]]) -> Sequence[Queue]:
    """Return the queues among what was read of ``elections`` or ``locks``. Pure."""
    lines: dict[str, list[Entry]] = {}
    for path, entry in entries:
        name, _, last = path.rpartition("/")
        if name and is_queue_key(b"", last.encode()):
            lines.setdefault(name, []).append(entry)
    return [_queue(name, line) for name, line in sorted(lines.items())]


def configs_in(entries: Iterable[tuple[str, Entry]]) -> Sequence[StoredConfig]:
    """Return the configurations among what was read of ``config``. Pure."""
    found: dict[str, list[Entry]] = {}
    for path, entry in entries:
        name = path.rpartition("/")[0]
        if name:
            found.setdefault(name, []).append(entry)
    return [_config(name, leaves) for name, leaves in sorted(found.items())]


def _start(client: Client, kind: Kind) -> bytes:
    return (join(client.prefix, kind) + "/").encode()


def _rest(key: bytes, start: bytes) -> str:
    return key[len(start) :].decode(errors="replace")


def _read_all(client: Client, kind: Kind, timeout: Timeout) -> Sequence[tuple[str, Entry]]:
    start = _start(client, kind)
    channel = client.scope().engine.channel
    view = read_range(
        channel, start, prefix_range_end(start), what=f"read {start.decode()!r}", timeout=timeout
    )
    return [(_rest(key, start), entry) for key, entry in sorted(view.entries.items())]


def _instance(service: str, instance_id: str, entry: Entry) -> Instance:
    key = entry.key.decode(errors="replace")
    info, trouble = None, ""
    try:
        info = Descriptor.decode(entry.value, key)
    except DecodeError as exc:
        trouble = str(exc)
    return Instance(
        service, instance_id, info, trouble, key, entry.lease,
        entry.create_revision, entry.mod_revision,
    )  # fmt: skip


def _queue(name: str, entries: Sequence[Entry]) -> Queue:
    line = sorted(entries, key=lambda entry: entry.create_revision)
    return Queue(name, [_contender(entry) for entry in line])


def _contender(entry: Entry) -> Contender:
    identity = entry.value.decode(errors="replace") or f"lease {entry.lease:x}"
    return Contender(identity, entry.lease, entry.create_revision)


def _config(name: str, entries: Sequence[Entry]) -> StoredConfig:
    # Every leaf of one configuration has the same key up to its last slash.
    prefix = entries[0].key.rpartition(b"/")[0] + b"/"
    return StoredConfig(
        name,
        len(entries),
        max(entry.mod_revision for entry in entries),
        LeafDecoder().read(entries, prefix),
    )
