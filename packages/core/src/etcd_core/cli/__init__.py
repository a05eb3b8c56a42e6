"""Command lines: the group that applications mount, and ``etcd-core``. Needs the extra ``cli``.

Everything runs in the calling thread, and the process ends with the command. Flask mounts the group
in every process, so gRPC is imported by the commands only.
"""

from __future__ import annotations

from .commands import build_group

__all__ = ["build_group"]
