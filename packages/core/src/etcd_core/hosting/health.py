"""The health of an application's etcd parts, as a plain mapping. No I/O; any thread; no state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import vitals
from ..masking import masked_metadata
from .host import ServiceHost

if TYPE_CHECKING:
    from ..sharing import SharedRegistration
    from ..vitals import ConfigurationVitals


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
    problems = list(_problems(host))
    return Health(
        not problems,
        {
            "status": "unavailable" if problems else "ok",
            "problems": problems,
            "pid": os.getpid(),
            "etcd": {
                "endpoints": [str(each) for each in client.config.parsed_endpoints],
                "prefix": client.prefix,
                "connected": client.connected,
            },
            "registration": _registration(registration, host) if registration else None,
            "configurations": [_configuration(each) for each in vitals.configurations()],
            "leads": sorted({each.key for each in vitals.read().leaderships}),
        },
    )


def _problems(host: ServiceHost) -> Iterator[str]:
    registration = host.registration
    connected = host.client.connected
    if not connected:
        yield "etcd cannot be reached"
    wanted = host.options.service_name is not None and host.serving
    if wanted and (registration is None or not registration.registered):
        # That etcd cannot be reached was said.
        why = registration.trouble if registration is not None and connected else ""
        yield f"{host.options.service_name} is not registered for this process" + (
            f": {why}" if why else ""
        )


def _registration(registration: SharedRegistration, host: ServiceHost) -> dict[str, object]:
    info = registration.info
    remaining = registration.lease_remaining
    return {
        "name": info.name,
        "id": info.id,
        "address": info.address,
        "metadata": masked_metadata(info.metadata),
        "registered": registration.registered,
        "lease": f"{registration.lease_id:x}",
        "lease_renewed": round(max(0.0, host.options.ttl - remaining), 1),
        "lease_remaining": round(remaining, 1),
    }


def _configuration(found: ConfigurationVitals) -> dict[str, object]:
    return {
        "name": found.name,
        "revision": found.revision,
        "live": found.live,
        "stale": None if found.stale is None else round(found.stale, 1),
        "rejected": found.rejected,
    }
