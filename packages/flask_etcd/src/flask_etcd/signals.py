"""The signals. Those about an application's own registration have the application as sender.

Receivers run on the dispatcher, without an application context; push one where needed. The others
are etcd-core's, unchanged.

Example:
    >>> @signals.service_registered.connect_via(app)
    ... def tell(app, *, registration, info, **_):
    ...     app.logger.info("registered at %s", info.address)
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from blinker import Namespace, Signal

from etcd_core import signals as core
from etcd_core.signals import (
    cluster_reset,
    config_changed,
    config_rejected,
    connection_state_changed,
    leadership_acquired,
    leadership_lost,
    lock_lost,
    send,
    service_changed,
    task_skipped,
)

if TYPE_CHECKING:
    from flask import Flask

    from etcd_core.hosting import ServiceHost

__all__ = [
    "cluster_reset",
    "config_changed",
    "config_rejected",
    "connection_state_changed",
    "leadership_acquired",
    "leadership_lost",
    "lock_lost",
    "registration_lost",
    "service_changed",
    "service_deregistered",
    "service_registered",
    "task_skipped",
]

_namespace = Namespace()
_PAYLOAD = "Sender: the application. Keywords: ``registration``, and those of etcd-core's signal."

service_registered: Final[Signal] = _namespace.signal("service_registered", doc=_PAYLOAD)
service_deregistered: Final[Signal] = _namespace.signal("service_deregistered", doc=_PAYLOAD)
registration_lost: Final[Signal] = _namespace.signal("registration_lost", doc=_PAYLOAD)

_FORWARDED = (
    (core.service_registered, service_registered),
    (core.service_deregistered, service_deregistered),
    (core.registration_lost, registration_lost),
)


def forward(app: Flask, host: ServiceHost) -> None:
    """Send what happens to the registration of ``host`` with ``app`` as sender. Internal."""
    known_app = weakref.ref(app)
    for source, target in _FORWARDED:

        def pass_on(registration: object, target: Signal = target, **payload: object) -> None:
            living = known_app()
            if living is not None and registration is host.registration:
                send(target, living, registration=registration, **payload)

        source.connect(pass_on, weak=False)
