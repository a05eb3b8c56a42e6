"""Reads what the page shows. Blocks; any thread. Keeps nothing but when revisions were seen.

Four range reads at one revision, and a look at the first leases: so many requests at most, however
much is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import EtcdError, PermissionDenied
from .ages import Age, RevisionTimes, revision_times

if TYPE_CHECKING:
    from ..client import Client
    from ..inventory import Excerpt, Instance, Kind, LeaseTime, Queue, StoredConfig
    from ..mirror import Entry

T = TypeVar("T")

MOST_KEYS = 5000
MOST_LEASES = 64
LEASE_SECONDS = 0.5


@dataclass(frozen=True)
class Section(Generic[T]):
    """One kind of thing.

    Attributes:
        items: What was found.
        unread: How many more keys there are.
        error: Why this kind could not be read while others could.
    """

    items: Sequence[T] = ()
    unread: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Status:
    """What was found.

    Attributes:
        prefix: The client's prefix.
        endpoints: The endpoints of its configuration.
        error: Why etcd could not be read; then the rest is empty.
        revision: The store's revision that this is the state of.
        at: When it was read, in Unix time.
        services: The instances of each service.
        elections: Who leads and who waits.
        locks: Who holds and who waits.
        configs: The configurations with their values, not masked yet.
        leases: How the leases stand that were asked for.
        ages: By revision, how long ago it was written.
    """

    prefix: str
    endpoints: Sequence[str] = ()
    error: str | None = None
    revision: int = 0
    at: float = 0.0
    services: Section[tuple[str, Sequence[Instance]]] = Section()
    elections: Section[Queue] = Section()
    locks: Section[Queue] = Section()
    configs: Section[StoredConfig] = Section()
    leases: Mapping[int, LeaseTime] = field(default_factory=dict)
    ages: Callable[[int], Age | None] = lambda revision: None


def collect(client: Client, *, timeout: float = 3.0) -> Status:
    """Read everything; never raises for an etcd that is down. Blocks.

    Args:
        client: Whose prefix to read.
        timeout: Seconds for each of the reads.
    """
    at = time.time()
    endpoints = [str(each) for each in client.config.parsed_endpoints]
    try:
        return _Reader(client, timeout).read(endpoints, at)
    except EtcdError as exc:
        return Status(client.prefix, endpoints, error=str(exc), at=at)


class _Reader:
    """One reading: the revision is that of the first answer."""

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._revision = 0
        self._times = RevisionTimes()

    def read(self, endpoints: Sequence[str], at: float) -> Status:
        from .. import inventory

        services = self._section("services", lambda found: inventory.services_in(found).items())
        elections = self._section("elections", inventory.queues_in)
        locks = self._section("locks", inventory.queues_in)
        configs = self._section("config", inventory.configs_in)
        times, now = self._times, time.monotonic()
        return Status(
            self._client.prefix,
            endpoints,
            revision=self._revision,
            at=at,
            services=services,
            elections=elections,
            locks=locks,
            configs=configs,
            leases=self._leases(_leases_of(elections, locks, services)),
            ages=lambda revision: times.age(revision, now),
        )

    def _section(
        self, kind: Kind, sort: Callable[[Sequence[tuple[str, Entry]]], Iterable[T]]
    ) -> Section[T]:
        try:
            excerpt = self._excerpt(kind)
        except PermissionDenied as exc:
            return Section(error=str(exc))
        return Section(tuple(sort(excerpt.entries)), excerpt.total - len(excerpt.entries))

    def _excerpt(self, kind: Kind) -> Excerpt:
        from ..inventory import read_excerpt

        asked = time.monotonic()
        found = read_excerpt(
            self._client, kind, most=MOST_KEYS, revision=self._revision, timeout=self._timeout
        )
        if not self._revision:
            self._revision = found.revision
            # After the read, which may be what notices that the store was reset.
            self._times = revision_times(self._client.scope().engine.channel.store)
            self._times.note(found.revision, asked=asked, answered=time.monotonic())
        return found

    def _leases(self, wanted: Sequence[int]) -> Mapping[int, LeaseTime]:
        """Ask for as many as there is time for; the page is whole without them."""
        from ..inventory import read_lease_time

        found: dict[int, LeaseTime] = {}
        deadline = time.monotonic() + LEASE_SECONDS
        for lease_id in wanted[:MOST_LEASES]:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                found[lease_id] = read_lease_time(self._client, lease_id, timeout=left)
            except EtcdError:
                break
        return found


def _leases_of(
    elections: Section[Queue],
    locks: Section[Queue],
    services: Section[tuple[str, Sequence[Instance]]],
) -> Sequence[int]:
    """Return the leases in the order of the page, those of holders first, each once."""
    holders = [queue.first.lease_id for section in (elections, locks) for queue in section.items]
    instances = [each.lease_id for _, members in services.items for each in members]
    return [lease for lease in dict.fromkeys(holders + instances) if lease]
