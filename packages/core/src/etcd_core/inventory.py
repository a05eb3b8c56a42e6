"""What lives under a client's prefix: services, elections, locks, configurations. Read-only.

For command lines and status pages; each call is one consistent read. Thread-safe, blocks, no state.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from .client import Client
from .config import UNSET, Timeout
from .descriptor import Descriptor
from .errors import DecodeError
from .keys import is_queue_key, join, prefix_range_end
from .mirror import Entry, read_range

MASK: Final = "********"
_SECRET = re.compile(r"pass(word|wd)?|secret|token|api_?key|private|credential|dsn", re.IGNORECASE)


@dataclass(frozen=True)
class Instance:
    """One registered instance.

    Attributes:
        info: The descriptor; None if the stored value is malformed.
        key: The etcd key.
        lease_id: The lease it hangs on; 0 for none.
        revision: When it was last written.
    """

    info: Descriptor | None
    key: str
    lease_id: int
    revision: int


@dataclass(frozen=True)
class Queue:
    """A lock or an election, and who waits.

    Attributes:
        name: As given to ``lock`` or ``campaign``.
        holder: The identity of the leader; for a lock, its lease in hex.
        token: The fencing token.
        waiting: How many are in line behind.
    """

    name: str
    holder: str
    token: int
    waiting: int


@dataclass(frozen=True)
class StoredConfig:
    """A configuration's name, its number of leaves and the revision of its last change."""

    name: str
    leaves: int
    revision: int


def read_services(
    client: Client, *, timeout: Timeout = UNSET
) -> Mapping[str, tuple[Instance, ...]]:
    """Return the instances of every service, by name.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    found: dict[str, list[Instance]] = {}
    for path, entry in _read(client, "services", timeout):
        name, slash, instance_id = path.partition("/")
        if slash and "/" not in instance_id:
            found.setdefault(name, []).append(_instance(entry))
    return {name: tuple(instances) for name, instances in found.items()}


def read_elections(client: Client, *, timeout: Timeout = UNSET) -> tuple[Queue, ...]:
    """Return every election that has a leader.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return _queues(client, "elections", timeout)


def read_locks(client: Client, *, timeout: Timeout = UNSET) -> tuple[Queue, ...]:
    """Return every lock that is held.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    return _queues(client, "locks", timeout)


def read_configs(client: Client, *, timeout: Timeout = UNSET) -> tuple[StoredConfig, ...]:
    """Return the configurations that are stored.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    found: dict[str, list[Entry]] = {}
    for path, entry in _read(client, "config", timeout):
        found.setdefault(path.rpartition("/")[0], []).append(entry)
    return tuple(
        StoredConfig(name, len(entries), max(entry.mod_revision for entry in entries))
        for name, entries in found.items()
    )


def masked(path: str, value: object) -> object:
    """Return ``value`` for people to see: hidden where the dotted ``path`` names a secret."""
    if _SECRET.search(path):
        return MASK
    if isinstance(value, Mapping):
        return {name: masked(f"{path}.{name}", part) for name, part in value.items()}
    if isinstance(value, list):
        return [masked(path, part) for part in value]
    if isinstance(value, str) and re.search(r"://[^/\s:]*:[^@\s]+@", value):
        return MASK
    return value


def _read(client: Client, kind: str, timeout: Timeout) -> Iterator[tuple[str, Entry]]:
    start = (join(client.prefix, kind) + "/").encode()
    channel = client.scope().engine.channel
    view = read_range(
        channel, start, prefix_range_end(start), what=f"read {start.decode()!r}", timeout=timeout
    )
    for key, entry in sorted(view.entries.items()):
        yield key[len(start) :].decode(errors="replace"), entry


def _instance(entry: Entry) -> Instance:
    key = entry.key.decode(errors="replace")
    try:
        info = Descriptor.decode(entry.value, key)
    except DecodeError:
        info = None
    return Instance(info, key, entry.lease, entry.mod_revision)


def _queues(client: Client, kind: str, timeout: Timeout) -> tuple[Queue, ...]:
    start = (join(client.prefix, kind) + "/").encode()
    lines: dict[str, list[Entry]] = {}
    for path, entry in _read(client, kind, timeout):
        name = path.rpartition("/")[0]
        if name and is_queue_key(start + name.encode() + b"/", entry.key):
            lines.setdefault(name, []).append(entry)
    return tuple(_queue(name, entries) for name, entries in lines.items())


def _queue(name: str, entries: list[Entry]) -> Queue:
    first = min(entries, key=lambda entry: entry.create_revision)
    holder = first.value.decode(errors="replace") or f"lease {first.lease:x}"
    return Queue(name, holder, first.create_revision, len(entries) - 1)
