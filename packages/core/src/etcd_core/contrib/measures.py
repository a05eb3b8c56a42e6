"""The gauges that Prometheus and OpenTelemetry show alike, computed from the vitals when asked.

Data only, no thread. Every label's values are bounded by what a program configures: its clients,
services, configurations and elections. Where two of them would be one series, the worse one shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from ..vitals import ClientVitals, Vitals

Labels = tuple[str, ...]
Readings = Iterable[tuple[Labels, float | None]]

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds for the durations of requests."""

_CLIENT: Final = ("endpoints", "prefix")
_REGISTRATION: Final = ("service", "id")
_CONFIG: Final = ("name",)
_ELECTION: Final = ("election",)


@dataclass(frozen=True)
class Measure:
    """One gauge.

    Attributes:
        metric: Its name in Prometheus.
        instrument: Its name in OpenTelemetry.
        unit: Its unit in OpenTelemetry.
        text: What it tells.
        labels: The names of its labels; in OpenTelemetry ``etcd.<name>``.
        read: Takes the readings out of the vitals; a None is left out.
        worse: Chooses between two readings of the same labels.
    """

    metric: str
    instrument: str
    unit: str
    text: str
    labels: Labels
    read: Callable[[Vitals], Readings]
    worse: Callable[[float, float], float] = min

    def values(self, vitals: Vitals) -> Mapping[Labels, float]:
        """Return one value per set of labels."""
        found: dict[Labels, float] = {}
        for labels, value in self.read(vitals):
            if value is not None:
                found[labels] = self.worse(found[labels], value) if labels in found else value
        return found


def _of_clients(
    take: Callable[[ClientVitals], float | None],
) -> Callable[[Vitals], Readings]:
    def read(vitals: Vitals) -> Iterator[tuple[Labels, float | None]]:
        for each in vitals.clients:
            yield (",".join(each.endpoints), each.prefix), take(each)

    return read


def _connected(client: ClientVitals) -> float | None:
    return None if client.connected is None else float(client.connected)


def _lag(client: ClientVitals) -> float | None:
    return float(client.watches.lag) if client.watches.count else None


def _of_registrations(vitals: Vitals) -> Readings:
    return (((each.name, each.id), float(each.registered)) for each in vitals.registrations)


def _margins(vitals: Vitals) -> Readings:
    return (((each.name, each.id), each.margin) for each in vitals.registrations)


def _revisions(vitals: Vitals) -> Readings:
    return (((each.name,), float(each.revision)) for each in vitals.configurations)


def _staleness(vitals: Vitals) -> Readings:
    return (((each.name,), each.stale or 0.0) for each in vitals.configurations)


def _from_files(vitals: Vitals) -> Readings:
    return (((each.name,), float(each.from_file)) for each in vitals.configurations)


def _rejections(vitals: Vitals) -> Readings:
    return (((each.name,), float(each.rejected or 0)) for each in vitals.configurations)


def _leading(vitals: Vitals) -> Readings:
    return (((each.key,), float(each.leading)) for each in vitals.elections)


MEASURES: Final = (
    Measure(
        "etcd_client_connected",
        "etcd.client.connected",
        "1",
        "1 while etcd answers, 0 while it cannot be reached; absent before the first request.",
        _CLIENT,
        _of_clients(_connected),
    ),
    Measure(
        "etcd_client_leases",
        "etcd.client.leases",
        "{lease}",
        "Leases that are kept alive, spare ones included.",
        _CLIENT,
        _of_clients(lambda each: float(each.leases.count)),
        max,
    ),
    Measure(
        "etcd_client_lease_margin_seconds",
        "etcd.client.lease.margin",
        "s",
        "Seconds until the first lease is dead if no renewal is answered; absent without leases.",
        _CLIENT,
        _of_clients(lambda each: each.leases.margin),
    ),
    Measure(
        "etcd_client_watches",
        "etcd.client.watches",
        "{watch}",
        "Watches on the client's stream.",
        _CLIENT,
        _of_clients(lambda each: float(each.watches.count)),
        max,
    ),
    Measure(
        "etcd_client_watches_down",
        "etcd.client.watches.down",
        "{watch}",
        "Watches that etcd does not serve at this moment.",
        _CLIENT,
        _of_clients(lambda each: float(each.watches.down)),
        max,
    ),
    Measure(
        "etcd_client_watch_lag_revisions",
        "etcd.client.watch.lag",
        "{revision}",
        "Revisions of the store that the client knows of and the watch stream did not tell of.",
        _CLIENT,
        _of_clients(_lag),
        max,
    ),
    Measure(
        "etcd_client_watch_silence_seconds",
        "etcd.client.watch.silence",
        "s",
        "Seconds since the watch stream told anything, progress notifications included.",
        _CLIENT,
        _of_clients(lambda each: each.watches.silence),
        max,
    ),
    Measure(
        "etcd_client_registered",
        "etcd.client.registered",
        "1",
        "1 while the registration is in place as far as this process knows, else 0.",
        _REGISTRATION,
        _of_registrations,
    ),
    Measure(
        "etcd_client_registration_margin_seconds",
        "etcd.client.registration.margin",
        "s",
        "Seconds until the registration's lease is dead if no renewal is answered.",
        _REGISTRATION,
        _margins,
    ),
    Measure(
        "etcd_client_config_revision",
        "etcd.client.config.revision",
        "{revision}",
        "The store's revision that the followers of the configuration were shown last.",
        _CONFIG,
        _revisions,
    ),
    Measure(
        "etcd_client_config_stale_seconds",
        "etcd.client.config.stale",
        "s",
        "Seconds since the configuration may be behind etcd; 0 while it is current.",
        _CONFIG,
        _staleness,
        max,
    ),
    Measure(
        "etcd_client_config_from_file",
        "etcd.client.config.from_file",
        "1",
        "1 while settings show the values of their snapshot file, else 0.",
        _CONFIG,
        _from_files,
        max,
    ),
    Measure(
        "etcd_client_config_rejected_revision",
        "etcd.client.config.rejected_revision",
        "{revision}",
        "The newest revision, where it was refused and an older one is shown, else 0.",
        _CONFIG,
        _rejections,
        max,
    ),
    Measure(
        "etcd_client_leader",
        "etcd.client.leader",
        "1",
        "1 while this process leads, 0 while it stands and does not; absent where it does neither.",
        _ELECTION,
        _leading,
        max,
    ),
)
