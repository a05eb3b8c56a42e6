"""etcd for Python services: configuration, registration, discovery, locks and leader election.

This module is the table of contents. Public names are loaded at first use, so that importing the
package (in a settings module, before a fork, in a management command) stays cheap: gRPC, protobuf,
YAML and etcd3 are not imported by it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from . import signals
from .errors import (
    AlreadyRegistered,
    CampaignTimeout,
    ClosedError,
    ClusterReset,
    Compacted,
    ConfigNotFound,
    Conflict,
    ConnectionFailed,
    DecodeError,
    EtcdError,
    InvalidArgument,
    InvalidConfig,
    LeaseLost,
    LockTimeout,
    NoInstances,
    NoSpace,
    NotLeader,
    OutcomeUnknown,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    ServerError,
    Unauthenticated,
)
from .wire import etcd3_import

if TYPE_CHECKING:
    from .candidate import Candidate
    from .client import Client, connect, shared_client
    from .config import UNSET, Config, Timeout, Tls
    from .discovery import ServiceEvent, ServiceEventType, ServiceView
    from .dispatch import Subscription
    from .election import Election, Term
    from .lock import Lock
    from .observe import LeaderWatch
    from .ownership import Compare
    from .registry import Descriptor, Registration
    from .source import ConfigSnapshot, ConfigSource
    from .tasks import checkpoint, current_term, exclusive, leader_only, set_default_client

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - sectioned, as a table of contents is
    # client
    "Client",
    "Config",
    "Timeout",
    "Tls",
    "UNSET",
    "connect",
    "shared_client",
    # configuration
    "ConfigSnapshot",
    "ConfigSource",
    # services
    "Descriptor",
    "Registration",
    "ServiceEvent",
    "ServiceEventType",
    "ServiceView",
    "Subscription",
    # locks and elections
    "Candidate",
    "Compare",
    "Election",
    "LeaderWatch",
    "Lock",
    # tasks
    "Term",
    "checkpoint",
    "current_term",
    "exclusive",
    "leader_only",
    "set_default_client",
    # signals
    "signals",
    # errors
    "AlreadyRegistered",
    "CampaignTimeout",
    "ClosedError",
    "ClusterReset",
    "Compacted",
    "ConfigNotFound",
    "Conflict",
    "ConnectionFailed",
    "DecodeError",
    "EtcdError",
    "InvalidArgument",
    "InvalidConfig",
    "LeaseLost",
    "LockTimeout",
    "NoInstances",
    "NoSpace",
    "NotLeader",
    "OutcomeUnknown",
    "PermissionDenied",
    "RequestTimeout",
    "RequestTooLarge",
    "ServerError",
    "Unauthenticated",
]

_HOMES = {
    "client": ("Client", "connect", "shared_client"),
    "config": ("Config", "Timeout", "Tls", "UNSET"),
    "source": ("ConfigSnapshot", "ConfigSource"),
    "registry": ("Descriptor", "Registration"),
    "discovery": ("ServiceEvent", "ServiceEventType", "ServiceView"),
    "dispatch": ("Subscription",),
    "candidate": ("Candidate",),
    "election": ("Election", "Term"),
    "observe": ("LeaderWatch",),
    "lock": ("Lock",),
    "ownership": ("Compare",),
    "tasks": ("checkpoint", "current_term", "exclusive", "leader_only", "set_default_client"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

etcd3_import.install()


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
