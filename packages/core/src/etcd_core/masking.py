"""Hides from people what looks like a secret: by its name, or by what a text holds. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MASK: Final = "********"

_NAMES = (
    r"password|passwd|passphrase|(?<!com)(?<!by)pass(?![a-z])|pwd|secret|token|credential|private"
    r"|dsn|cookie|salt|signature"
    r"|(?:api|access|account|auth|encrypt\w*|sign\w*|crypt\w*|ssh|master|shared)[-_. ]?key"
)
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
_SECRET_TEXT = re.compile(
    rf"(?:{_NAMES})[\w-]*[\"']?\s*[=:]\s*\S"  # password=..., "token": ...
    r"|://[^/\s:]*:[^@\s]+@"  # scheme://user:password@host
    r"|\bbearer\s+[\w+/=.~-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE,
)


def masked(path: str, value: object) -> object:
    """Return ``value`` for people to see: hidden where a name or a text looks like a secret.

    Args:
        path: The dotted path or the name that the value has.
        value: Plain data, nested or not.
    """
    if _SECRET_NAME.search(path):
        return MASK
    if isinstance(value, Mapping):
        return {name: masked(str(name), part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked("", part) for part in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and _SECRET_TEXT.search(value):
        return MASK
    return value


def masked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return an instance's metadata for people to see."""
    return {name: str(masked(name, value)) for name, value in metadata.items()}
