"""A real etcd for tests: servers, clusters, faults, counters, certificates.

Public, and what the library's own tests use. Names are resolved at first use, so importing this
package (the pytest plugin does, in every run) costs nothing. Linux in the first place; on macOS
the servers and the proxy work too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .binary import Binaries, EtcdNotFound, find_binaries
    from .cluster import EtcdCluster
    from .counter import RpcCounter
    from .fakes import fake_leader, no_leader
    from .proxy import FaultProxy
    from .server import Bootstrap, EtcdctlFailed, EtcdServer, EtcdStartFailed, PortInUse
    from .tls import KeyPair, TestCA, TlsFiles
    from .wait import eventually
else:
    _HOMES = {
        "Binaries": "binary",
        "EtcdNotFound": "binary",
        "find_binaries": "binary",
        "EtcdCluster": "cluster",
        "RpcCounter": "counter",
        "fake_leader": "fakes",
        "no_leader": "fakes",
        "FaultProxy": "proxy",
        "Bootstrap": "server",
        "EtcdServer": "server",
        "EtcdStartFailed": "server",
        "EtcdctlFailed": "server",
        "PortInUse": "server",
        "KeyPair": "tls",
        "TestCA": "tls",
        "TlsFiles": "tls",
        "eventually": "wait",
    }

    def __getattr__(name: str) -> object:
        """Import the module that owns ``name``."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


__all__ = [
    "Binaries",
    "Bootstrap",
    "EtcdCluster",
    "EtcdNotFound",
    "EtcdServer",
    "EtcdStartFailed",
    "EtcdctlFailed",
    "FaultProxy",
    "KeyPair",
    "PortInUse",
    "RpcCounter",
    "TestCA",
    "TlsFiles",
    "eventually",
    "fake_leader",
    "find_binaries",
    "no_leader",
]
