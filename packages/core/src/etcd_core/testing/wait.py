"""Waiting for a condition with a bound, in place of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    predicate: Callable[[], T], timeout: float = 10.0, interval: float = 0.02, message: str = ""
) -> T:
    """Call ``predicate`` until it gives a true value, and return that value.

    Blocks in the calling thread. A predicate that raises counts as "not yet"; it is always
    called once more after the time is up, so a late but true condition is not missed.

    Args:
        predicate: What to wait for.
        timeout: Seconds to wait.
        interval: Seconds between two calls.
        message: What was waited for, for the error text.

    Returns:
        The first true value.

    Raises:
        AssertionError: The condition did not come true in time; tells the last value or exception.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_call = time.monotonic() >= deadline
        failure: Exception | None = None
        try:
            value = predicate()
        except Exception as exc:  # any failure may heal until the time is up
            failure = exc
        else:
            if value:
                return value
        if last_call:
            last = repr(value) if failure is None else f"{type(failure).__name__}: {failure}"
            what = message or getattr(predicate, "__name__", "condition")
            text = f"{what}: not within {timeout:g} s, last {last}"
            raise AssertionError(text) from failure
        time.sleep(interval)
