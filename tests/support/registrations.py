"""What registrations announce, recorded; and processes that hold one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from etcd_core import Descriptor, signals


def descriptor(instance: str = "b-1", **changes: object) -> Descriptor:
    """Return an instance of the service ``billing``."""
    fields: dict[str, object] = {"name": "billing", "id": instance, "address": f"{instance}:80"}
    return Descriptor(**{**fields, **changes})  # type: ignore[arg-type]


class Announced:
    """The registration signals, in the order they came: ``("registered", repaired)`` and so on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[tuple[object, str, object]] = []

    def add(self, sender: object, what: str, detail: object) -> None:
        """Note one."""
        with self._lock:
            self._seen.append((sender, what, detail))

    def of(self, sender: object) -> list[tuple[str, object]]:
        """Return what one registration announced."""
        with self._lock:
            return [(what, detail) for who, what, detail in self._seen if who is sender]

    def losses(self, sender: object) -> list[object]:
        """Return the reasons of the losses of one registration."""
        return [detail for what, detail in self.of(sender) if what == "lost"]

    def repairs(self, sender: object) -> int:
        """Return how often one registration was repaired."""
        return self.of(sender).count(("registered", True))


@contextmanager
def announced() -> Iterator[Announced]:
    """Record while the block runs."""
    log = Announced()
    receivers: list[tuple[object, Callable[..., None]]] = []

    def registered(sender: object, *, info: object, repaired: bool) -> None:
        log.add(sender, "registered", repaired)

    def lost(sender: object, *, info: object, reason: str) -> None:
        log.add(sender, "lost", reason)

    def deregistered(sender: object, *, info: object) -> None:
        log.add(sender, "deregistered", info)

    receivers = [
        (signals.service_registered, registered),
        (signals.registration_lost, lost),
        (signals.service_deregistered, deregistered),
    ]
    with ExitStack() as stack:
        for signal, receiver in receivers:
            stack.enter_context(signal.connected_to(receiver))  # type: ignore[attr-defined]
        yield log
