"""Why a revision is refused, in words that hold no value from etcd. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dynaconf.validator import ValidationError

from .layers import Refused, Revision

_SHOWN = frozenset({"", "true", "false", "none", "null"})


def reasons_of(error: Exception, revision: Revision, accepted: Revision | None) -> tuple[str, ...]:
    """Return the reasons in an error that a build raised.

    Messages of validators, hooks and parsers quote values, and a value may be a secret: every value
    that the refused revision brought is masked.
    """
    if isinstance(error, Refused):
        return error.reasons
    text = _masked(str(error), _new_values(revision, accepted))
    if isinstance(error, ValidationError):
        return (text,)
    return (f"{type(error).__name__}: {text}",)


def _new_values(revision: Revision, accepted: Revision | None) -> set[str]:
    values: set[str] = set()
    for layer, table in revision.tables.items():
        known = accepted.leaves(layer) if accepted is not None else {}
        for path, leaf in table.found.items():
            if path not in known or known[path].raw != leaf.raw:
                values.update(_texts(leaf.value))
    return values - _SHOWN


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
        yield str(value)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
        yield str(value)
    elif not isinstance(value, bool):
        yield str(value)


def _masked(text: str, values: set[str]) -> str:
    # Longest first, so that no part of a value is left over.
    for value in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "***", text)
    return text
