"""The signals, in one blinker namespace. Receivers run on the dispatcher, never under our locks.

A receiver that raises is logged and stops nothing; see :func:`send`. Importing this module imports
blinker only.

Example:
    >>> from etcd_core import signals
    >>> @signals.lock_lost.connect
    ... def stop_work(lock, *, key, reason, **_):
    ...     print(key, reason)
"""

from __future__ import annotations

import logging
from typing import Final

from blinker import Namespace, Signal

from .events import Event, fields

_log = logging.getLogger("etcd_core.signals")
_namespace = Namespace()

config_changed: Final[Signal] = _namespace.signal(
    "config_changed",
    doc="""A configuration changed. Sender: the :class:`ConfigSource`, or the settings object of an
    adapter. Keywords: ``changed``, ``added``, ``removed`` (frozensets of dotted paths), ``old``,
    ``new`` (snapshots), ``revision`` (int).""",
)
config_rejected: Final[Signal] = _namespace.signal(
    "config_rejected",
    doc="""A revision of a configuration was refused and the last good one kept. Sender: as
    :data:`config_changed`. Keywords: ``revision`` (int), ``reasons`` (tuple of str, values
    masked).""",
)
service_registered: Final[Signal] = _namespace.signal(
    "service_registered",
    doc="""A registration's key is in etcd: at first, and after every repair. Sender: the
    :class:`Registration`. Keywords: ``info`` (Descriptor), ``repaired`` (bool).""",
)
service_deregistered: Final[Signal] = _namespace.signal(
    "service_deregistered",
    doc="""A registration was taken out by its owner. Sender: the :class:`Registration`. Keywords:
    ``info`` (Descriptor).""",
)
registration_lost: Final[Signal] = _namespace.signal(
    "registration_lost",
    doc="""A registration is not in etcd. Sender: the :class:`Registration`. Keywords: ``info``
    (Descriptor), ``reason``: ``"replaced"`` is final (another live process holds the id); every
    other reason is being repaired.""",
)
service_changed: Final[Signal] = _namespace.signal(
    "service_changed",
    doc="""The instances of a watched service changed. Sender: the :class:`ServiceView`. Keywords:
    ``name`` (str), ``events`` (tuple of ServiceEvent).""",
)
lock_lost: Final[Signal] = _namespace.signal(
    "lock_lost",
    doc="""A held lock was lost before it was released. Sender: the :class:`Lock`. Keywords: ``key``
    (str), ``reason`` (str).""",
)
leadership_acquired: Final[Signal] = _namespace.signal(
    "leadership_acquired",
    doc="""This process became leader. Sender: the :class:`Election`. Keywords: ``key``,
    ``identity`` (str), ``token`` (int).""",
)
leadership_lost: Final[Signal] = _namespace.signal(
    "leadership_lost",
    doc="""This process is leader no more. Sender: the :class:`Election`. Keywords: ``key``,
    ``identity`` (str), ``token`` (int), ``reason`` (``"resigned"`` when it was our own wish).""",
)
task_skipped: Final[Signal] = _namespace.signal(
    "task_skipped",
    doc="""A guarded task did not run in this process. Sender: the function's qualified name (str).
    Keywords: ``name`` (str), ``reason``: ``"not_leader"``, ``"locked"``, ``"unreachable"`` or
    ``"min_remaining"``. Sent by the call itself, in its thread.""",
)
cluster_reset: Final[Signal] = _namespace.signal(
    "cluster_reset",
    doc="""The store went back in time: restored from a backup or restarted empty. Sender: None.
    Keywords: ``prefix`` (str, the client's), ``before``, ``after`` (int revisions).""",
)
connection_state_changed: Final[Signal] = _namespace.signal(
    "connection_state_changed",
    doc="""etcd became unreachable or reachable again. Sender: None. Keywords: ``prefix`` (str),
    ``endpoints`` (tuple of str), ``connected`` (bool), ``reason`` (str).""",
)


def send(signal: Signal, sender: object, **payload: object) -> None:
    """Send ``signal``; a receiver that raises is logged and the others still run."""
    for receiver in signal.receivers_for(sender):
        try:
            receiver(sender, **payload)
        except Exception:  # the receiver is the user's code
            name = getattr(signal, "name", "")
            _log.exception(
                "a receiver of %r failed",
                signal,
                extra=fields(Event.CALLBACK_FAILED, handler=f"signal {name}"),
            )
