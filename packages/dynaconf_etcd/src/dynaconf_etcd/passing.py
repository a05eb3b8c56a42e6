"""Which refusals may be over by themselves, although nothing changes in etcd. Pure functions.

A file that is being replaced, or a service that a hook asks, may be there a moment later. A value
that a validator refuses stays what it is.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Final

from dynaconf.validator import ValidationError

from etcd_core import EtcdError

from .layers import Refused

_FILES: Final = "dynaconf.loaders."
_NOT_FILES: Final = "dynaconf.loaders.env_loader"

_OF_CLIENTS: Final = (
    "ConnectError",
    "ConnectionError",
    "NetworkError",
    "OperationalError",
    "Timeout",
    "TimeoutError",
    "TransportError",
)
"""How clients of other services call what passes, where that is no ``OSError``."""


def may_pass(error: BaseException) -> bool:
    """Tell whether what raised this may work later with the same values."""
    if isinstance(error, Refused):
        return error.passing
    if isinstance(error, ValidationError):
        # Made for an error of another kind, or a plain "no".
        return getattr(error, "passing", False)
    return any(map(_passes, _chain(error))) or _is_of_a_file(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _passes(error: BaseException) -> bool:
    if isinstance(error, EtcdError):
        return error.retryable
    if isinstance(error, (OSError, concurrent.futures.TimeoutError)):
        return True
    return any(kind.__name__.endswith(_OF_CLIENTS) for kind in type(error).__mro__)


def _is_of_a_file(error: BaseException) -> bool:
    """Tell whether it came out of a loader of Dynaconf's: of a file half-written, or a server."""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith(_FILES) and module != _NOT_FILES:
            return True
        trace = trace.tb_next
    return False
