"""Dynaconf settings from etcd: alone or over files, live.

The loader is :mod:`dynaconf_etcd.loader`; this module is what a program calls about its settings.
Importing it makes the options known to Dynaconf, so that ``Dynaconf(etcd={...})`` is understood.
Other names are resolved at first use: neither gRPC nor YAML is imported before settings are loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from etcd_core.signals import config_changed, config_rejected

from . import options as _options  # noqa: F401  (registers the names of the options)

if TYPE_CHECKING:
    from .live import Rejection
    from .provenance import Explanation, Provider, explain
    from .state import Status, close, snapshot, status
    from .subscribe import SettingChange, on_change
    from .writing import delete, write

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "Provider",
    "Rejection",
    "SettingChange",
    "Status",
    "close",
    "config_changed",
    "config_rejected",
    "delete",
    "explain",
    "on_change",
    "snapshot",
    "status",
    "write",
]

_HOMES = {
    "Explanation": "provenance",
    "Provider": "provenance",
    "explain": "provenance",
    "Rejection": "live",
    "SettingChange": "subscribe",
    "on_change": "subscribe",
    "Status": "state",
    "close": "state",
    "snapshot": "state",
    "status": "state",
    "delete": "writing",
    "write": "writing",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value
