"""When a process serves, and what is done then. What the framework adapters stand on.

:class:`ServiceHost` registers a service while the process listens and takes it out when it stops;
:func:`when_running` defers work until the process is past every fork that serves. Importing this
package imports neither gRPC nor protobuf, and starts no thread.
"""

from __future__ import annotations

from .host import ServiceHost
from .options import HostOptions
from .running import when_running

__all__ = ["HostOptions", "ServiceHost", "when_running"]
