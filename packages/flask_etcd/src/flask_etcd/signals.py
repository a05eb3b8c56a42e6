"""The signals, each with the application as sender: what concerns its etcd parts and no others'.

They are etcd-core's of the same name, passed on for what was made by the application's client
(``etcd.client``): its connection, registration, locks, elections, views, configurations and guarded
tasks. etcd-core's own signals still have the registration, the lock, ... as sender and tell of
every client of the process. Receivers run where the core's do: on the dispatcher, without an
application context.

Example:
    >>> @signals.service_registered.connect_via(app)
    ... def tell(app, *, registration, info, **_):
    ...     app.logger.info("registered at %s", info.address)
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from blinker import Namespace, Signal

from etcd_core import signals as core
from etcd_core.signals import send

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
# The core signal, ours, and the keyword that carries the core's sender.
_forwarded: dict[Signal, tuple[Signal, str]] = {}
_apps: tuple[weakref.ref[Flask], ...] = ()


def _of_application(name: str, keyword: str, what: str = "") -> Signal:
    carried = f"``{keyword}`` ({what}), and" if keyword else "only"
    doc = f"Sender: the application. Keywords: {carried} those of etcd-core's ``{name}``."
    signal = _namespace.signal(name, doc=doc)
    _forwarded[getattr(core, name)] = (signal, keyword)
    return signal


service_registered: Final[Signal] = _of_application(
    "service_registered", "registration", "the application's, or one made by its client"
)
service_deregistered: Final[Signal] = _of_application(
    "service_deregistered", "registration", "as in service_registered"
)
registration_lost: Final[Signal] = _of_application(
    "registration_lost", "registration", "as in service_registered"
)
service_changed: Final[Signal] = _of_application("service_changed", "view", "ServiceView")
lock_lost: Final[Signal] = _of_application("lock_lost", "lock", "Lock")
leadership_acquired: Final[Signal] = _of_application("leadership_acquired", "election", "Election")
leadership_lost: Final[Signal] = _of_application("leadership_lost", "election", "Election")
task_skipped: Final[Signal] = _of_application("task_skipped", "task", "its qualified name")
config_changed: Final[Signal] = _of_application(
    "config_changed", "source", "the ConfigSource, or the Dynaconf settings of the application"
)
config_rejected: Final[Signal] = _of_application(
    "config_rejected", "source", "as in config_changed"
)
cluster_reset: Final[Signal] = _of_application("cluster_reset", "")
connection_state_changed: Final[Signal] = _of_application("connection_state_changed", "")


def forward(app: Flask, host: ServiceHost) -> None:
    """Send what concerns ``host``, and the application's settings, with ``app`` as sender."""
    global _apps
    known_app = weakref.ref(app)

    def pass_on(signal: Signal, sender: object, payload: Mapping[str, object]) -> None:
        living = known_app()
        if living is not None:
            _pass_on(living, signal, sender, payload)

    host.follow(pass_on)
    # Replaced, never changed: the receivers below read it in another thread.
    _apps = (*(known for known in _apps if known() is not None), known_app)
    core.config_changed.connect(_settings_changed)
    core.config_rejected.connect(_settings_rejected)


def _pass_on(app: Flask, signal: Signal, sender: object, payload: Mapping[str, object]) -> None:
    target, keyword = _forwarded[signal]
    carried = {keyword: sender} if keyword else {}
    send(target, app, **carried, **payload)


def _settings_changed(sender: object, **payload: object) -> None:
    _pass_on_settings(core.config_changed, sender, payload)


def _settings_rejected(sender: object, **payload: object) -> None:
    _pass_on_settings(core.config_rejected, sender, payload)


def _pass_on_settings(signal: Signal, settings: object, payload: Mapping[str, object]) -> None:
    """Pass on what is told of the settings behind an ``app.config``: they have their own client."""
    for known_app in _apps:
        app = known_app()
        # FlaskDynaconf sets the attribute, perhaps after this extension was set up.
        if app is not None and getattr(app, "dynaconf", None) is settings:
            _pass_on(app, signal, settings, payload)
