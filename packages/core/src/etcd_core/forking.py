"""What a forked child is told. Owns the process-wide list of objects that care about ``fork()``.

A child inherits our Python objects but none of our threads, and must not touch an inherited gRPC
object (closing or finalising one hangs, see docs/failures.md). So after a fork each object only
resets its own Python state: no lock is taken, no thread started, no request sent.
"""

from __future__ import annotations

import ctypes
import logging
import os
import weakref
from typing import Protocol

from .events import Event, fields

_log = logging.getLogger("etcd_core.forking")


class ForkAware(Protocol):
    """Something that holds per-process state."""

    def after_fork_in_child(self) -> None:
        """Reset Python state only; runs in the child, in its only thread."""


_objects: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def track(obj: ForkAware) -> None:
    """Have ``obj.after_fork_in_child()`` called in every forked child while ``obj`` lives."""
    _objects.add(obj)


def keep_for_ever(obj: object) -> None:
    """Make ``obj`` immortal, so that the child never finalises what it inherited.

    A module-level list would still be cleared at interpreter exit; one reference that nobody owns
    is not.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(obj))


def _after_fork_in_child() -> None:
    for obj in list(_objects):
        try:
            obj.after_fork_in_child()
        except Exception:
            # The others must hear of the fork all the same.
            _log.exception(
                "%r could not be reset in a forked child",
                obj,
                extra=fields(Event.INTERNAL_ERROR, part="fork"),
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
