"""Django on etcd: the service is registered exactly while it serves; tasks run on one process.

Add ``"django_etcd"`` to ``INSTALLED_APPS`` and set ``ETCD = {"ENDPOINTS": [...], "SERVICE_NAME":
...}``; that is all. Importing this package does no I/O and imports no gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd_core import tasks

from . import signals
from ._state import current_host

if TYPE_CHECKING:
    from etcd_core import Client
    from etcd_core.sharing import SharedRegistration

__all__ = ["client", "exclusive", "leader_only", "ready", "registration", "signals"]


def client() -> Client:
    """Return this process's client, configured by the setting ``ETCD``. No I/O; thread-safe.

    After ``fork()`` the child's is a new one. Do not close it: the registration uses it too.

    Raises:
        ImproperlyConfigured: The setting is missing or unusable.
    """
    return current_host().client


def registration() -> SharedRegistration | None:
    """Return this process's part in the service's registry entry. No I/O; thread-safe.

    None while this process does not serve: in commands, in tests, and before the server listens.

    Raises:
        ImproperlyConfigured: The setting is missing or unusable.
    """
    return current_host().registration


def ready(ready: bool) -> None:
    """Take this process out of the registry entry, or back in. Does not block; thread-safe.

    The entry stays while another worker of the server is ready.
    """
    current_host().ready(ready)


# With this client, whatever else in the process has named one for all tasks.
leader_only = tasks.with_client(tasks.leader_only, client)
exclusive = tasks.with_client(tasks.exclusive, client)
