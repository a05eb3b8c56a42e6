"""The signals: etcd-core's own, under Django's roof.

Example:
    >>> from django_etcd import signals
    >>> @signals.lock_lost.connect
    ... def stop_work(lock, *, key, reason, **_):
    ...     print(key, reason)
"""

from etcd_core.signals import (
    cluster_reset,
    config_changed,
    config_rejected,
    connection_state_changed,
    leadership_acquired,
    leadership_lost,
    lock_lost,
    registration_lost,
    service_changed,
    service_deregistered,
    service_registered,
    task_skipped,
)

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
