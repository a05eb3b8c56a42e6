"""Chooses an instance of a service for a call, and steers around those that failed. No I/O.

Stands on a :class:`ServiceView`, so choosing asks nobody. No thread; a lock guards its state.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Literal

from . import forking
from .errors import InvalidArgument, NoInstances

if TYPE_CHECKING:
    from .descriptor import Descriptor
    from .discovery import ServiceView

Policy = Literal["round_robin", "random"]

_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class Resolver:
    """Picks instances of one service. Thread-safe; never blocks.

    Instances that say ``status=draining`` in their metadata, and those reported as failing, are
    passed over while there are others.

    Args:
        view: The service, from ``client.services(name)``.
        policy: ``"round_robin"`` or ``"random"``.
        keep_last: Seconds to go on with the last instances known after the registry became empty:
            an etcd that was restored empty must not stop every caller at once.
        avoid_for: Seconds to pass over an instance after :meth:`failed`.

    Example:
        >>> resolver = Resolver(client.services("billing"))
        >>> instance = resolver.pick()
        >>> try:
        ...     call(instance.address)
        ... except OSError:
        ...     resolver.failed(instance)
    """

    def __init__(
        self,
        view: ServiceView,
        *,
        policy: Policy = "round_robin",
        keep_last: float = 60.0,
        avoid_for: float = 10.0,
    ) -> None:
        if policy not in ("round_robin", "random"):
            raise InvalidArgument(f"policy must be 'round_robin' or 'random', not {policy!r}")
        if keep_last < 0 or avoid_for < 0:
            raise InvalidArgument("keep_last and avoid_for must be >= 0 seconds")
        self._view = view
        self._policy = policy
        self._keep_last = keep_last
        self._avoid_for = avoid_for
        self._lock = threading.Lock()
        self._avoided: dict[str, float] = {}
        self._known: Sequence[Descriptor] = ()
        self._known_at = 0.0
        # Processes that start together must not all begin with the same instance.
        self._turn = random.randrange(1 << 16)
        forking.track(self)

    @property
    def name(self) -> str:
        """The service."""
        return self._view.name

    def pick(self, *, exclude: Collection[str] = ()) -> Descriptor:
        """Return the next instance.

        Args:
            exclude: Ids that this call has tried already.

        Raises:
            NoInstances: None is known, or all are excluded.
        """
        with self._lock:
            now = time.monotonic()
            candidates = [each for each in self._instances(now) if each.id not in exclude]
            if not candidates:
                raise NoInstances(f"service {self.name!r}: no instance to call")
            best = self._preferred(candidates, now)
            if self._policy == "random":
                return random.choice(best)
            self._turn += 1
            return best[self._turn % len(best)]

    def __len__(self) -> int:
        """Return how many instances are known."""
        with self._lock:
            return len(self._instances(time.monotonic()))

    def failed(self, instance: Descriptor) -> None:
        """Pass over ``instance`` for a while."""
        with self._lock:
            self._avoided[instance.id] = time.monotonic() + self._avoid_for

    def succeeded(self, instance: Descriptor) -> None:
        """Take ``instance`` back at once."""
        with self._lock:
            self._avoided.pop(instance.id, None)

    def after_fork_in_child(self) -> None:
        """Replace the lock: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def _instances(self, now: float) -> Sequence[Descriptor]:
        found = self._view.instances
        if found:
            self._known, self._known_at = found, now
        elif now - self._known_at > self._keep_last:
            self._known = ()
        return self._known

    def _preferred(self, candidates: Sequence[Descriptor], now: float) -> Sequence[Descriptor]:
        for instance_id in [each for each, until in self._avoided.items() if until <= now]:
            del self._avoided[instance_id]
        serving = [each for each in candidates if each.metadata.get("status") != "draining"]
        sound = [each for each in serving if each.id not in self._avoided]
        return sound or serving or candidates


def is_idempotent(method: str) -> bool:
    """Tell whether an HTTP request may be sent again to another instance."""
    return method.upper() in _IDEMPOTENT


def base_url(instance: Descriptor) -> str:
    """Return ``scheme://host:port``; the scheme is the metadata's, else ``http``."""
    return f"{instance.metadata.get('scheme', 'http')}://{instance.address}"
