"""Hides from people what looks like a secret: by its name, or by what a text holds. Pure.

A guess, and one that rather hides too much: the one list of such names for command lines, pages,
health answers and the explanations of Dynaconf settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MASK: Final = "********"

# Matched against lower case with "_" between the words of camelCase. All repetitions are bounded:
# whoever may write to etcd must not be able to keep a process busy with one long text.
_NAMES = (
    r"passw|passphrase|(?<!com)(?<!by)pass(?![a-z])|pwd|secret|token|credential|private|dsn"
    r"|cookie|(?<!ba)salt|signature|jwt|bearer|authorization|(?<![a-z])(?:o?auth|signing)(?![a-z])"
    r"|(?:api|access|account|auth|encrypt\w{0,12}|sign\w{0,12}|crypt\w{0,12}|ssh|master|shared)"
    r"[-_. ]?key"
)
_SECRET_NAME = re.compile(_NAMES)
_SECRET_TEXT = re.compile(
    rf"(?:{_NAMES})[\w-]{{0,64}}[\"']?\s{{0,8}}[=:]\s{{0,8}}\S"  # password=..., "token": ...
    r"|://[^/\s:@]{0,256}:[^@\s]{0,256}@"  # scheme://user:password@host
    r"|://[^/\s?#:@]{1,256}@"  # scheme://key@host
    r"|\bbearer\s{1,8}\S"
    r"|\bbasic\s{1,8}(?=[a-z]{0,64}[\d+/=_])[\w+/=]{6}"  # English has no such words
    r"|\bey_j[\w-]{8,512}\.[\w-]{8}"  # a JWT
    r"|-----begin [a-z ]{0,32}private key"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def is_secret_name(path: str) -> bool:
    """Tell whether what goes by this name, or lies at this dotted path, looks like a secret."""
    return _SECRET_NAME.search(_words(path)) is not None


def masked(path: str, value: object) -> object:
    """Return ``value`` for people to see: hidden where a name or a text looks like a secret.

    Nothing is left of a text that holds one. None, True and False are no secrets.

    Args:
        path: The dotted path or the name that the value has.
        value: Plain data, nested or not.
    """
    if value is None or isinstance(value, bool):
        return value
    if is_secret_name(path):
        return MASK
    if isinstance(value, Mapping):
        return {name: masked(str(name), part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked("", part) for part in value]
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str) and _SECRET_TEXT.search(_words(value)):
        return MASK
    return value


def masked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return an instance's metadata for people to see."""
    return {name: str(masked(name, value)) for name, value in metadata.items()}


def _words(text: str) -> str:
    return _HUMP.sub("_", text).lower()
