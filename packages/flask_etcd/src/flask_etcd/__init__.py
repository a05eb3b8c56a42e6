"""Flask on etcd: the service is registered exactly while it serves; tasks run on one process.

``Etcd(app)``, or ``Etcd()`` and ``init_app(app)`` in an application factory, is all. Importing this
package does no I/O and imports no gRPC.
"""

from __future__ import annotations

from . import signals
from .extension import Etcd

__all__ = ["Etcd", "signals"]
