"""Leadership without etcd: what a unit test says of a task's name, for the whole process.

Imports gRPC only when a term is made, so it is not imported with the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from etcd_core import signals, taskguard
from etcd_core.election import Term
from etcd_core.keys import election_prefix, queue_key, require_name
from etcd_core.latch import Latch
from etcd_core.ownership import Compare


class _Lost(Latch):
    """Tells a task of its loss by the same signal as a real one."""

    def __init__(self, name: str, identity: str, token: int) -> None:
        super().__init__()
        self._told = {"key": name, "identity": identity, "token": token, "reason": "fake"}

    def set(self) -> None:
        """Lose the leadership."""
        super().set()
        signals.send(signals.leadership_lost, None, **self._told)


@contextmanager
def fake_leader(name: str, *, token: int = 1, identity: str = "fake") -> Iterator[Term]:
    """Let guarded tasks of ``name`` run in this block, in any thread; no etcd, no client needed.

    Setting ``lost`` of the term it gives ends the leadership, as a running task sees it.

    Args:
        name: The tasks' name.
        token: What ``current_term().token`` is.
        identity: What ``current_term().identity`` is.

    Example:
        >>> with fake_leader("nightly-report", token=7):
        ...     assert report() is not None
    """
    require_name("fake_leader", "name", name)
    lost = _Lost(name, identity, token)
    key = queue_key(election_prefix("/fake", name).encode(), 1)
    term = Term(
        name=name,
        identity=identity,
        token=token,
        lost=lost,
        remaining=lambda: 0.0 if lost.is_set() else float("inf"),
        guard=lambda: Compare(key, token),
    )
    with taskguard.pretend(name, term):
        yield term


@contextmanager
def no_leader(name: str) -> Iterator[None]:
    """Let guarded tasks of ``name`` not run in this block, as if another process led.

    They skip, raise or, where they would wait, raise at once. No etcd, no client needed.

    Example:
        >>> with no_leader("nightly-report"):
        ...     assert report() is None
    """
    require_name("no_leader", "name", name)
    with taskguard.pretend(name, None):
        yield
