"""The health of an application's etcd parts, as a plain mapping. No I/O; any thread.

Owns the set of elections this process leads, kept by the leadership signals.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import forking, signals
from .host import ServiceHost

if TYPE_CHECKING:
    from ..sharing import SharedRegistration


@dataclass(frozen=True)
class Health:
    """What this process knows, without asking etcd.

    Attributes:
        ready: Whether it does what it was configured for: etcd answers, and where the process
            serves, it is registered and not taken out by ``ready(False)``.
        details: For people and dashboards; JSON types only, no secrets.
    """

    ready: bool
    details: dict[str, object]


def check(host: ServiceHost) -> Health:
    """Return the health of this process. Does no I/O and does not block."""
    client = host.client
    registration = host.registration
    wanted = host.options.service_name is not None and host.serving
    registered = registration is not None and registration.registered
    ready = client.connected and (registered or not wanted)
    return Health(
        ready,
        {
            "status": "ok" if ready else "unavailable",
            "pid": os.getpid(),
            "etcd": {
                "endpoints": [str(each) for each in client.config.parsed_endpoints],
                "prefix": client.prefix,
                "connected": client.connected,
            },
            "registration": _registration(registration) if registration is not None else None,
            "leads": _leadership.names(),
        },
    )


def _registration(registration: SharedRegistration) -> dict[str, object]:
    info = registration.info
    return {
        "name": info.name,
        "id": info.id,
        "address": info.address,
        "metadata": dict(info.metadata),
        "registered": registration.registered,
        "lease": f"{registration.lease_id:x}",
        "lease_remaining": round(registration.lease_remaining, 1),
    }


class _Leadership:
    """Counts what this process leads; receivers run on the dispatcher."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        signals.leadership_acquired.connect(self._acquired)
        signals.leadership_lost.connect(self._lost)
        forking.track(self)

    def names(self) -> list[str]:
        return sorted(name for name, count in self._held.items() if count > 0)

    def after_fork_in_child(self) -> None:
        self._held = Counter()

    def _acquired(self, election: object, *, key: str, **_: object) -> None:
        self._held[key] += 1

    def _lost(self, election: object, *, key: str, **_: object) -> None:
        self._held[key] -= 1


_leadership = _Leadership()
