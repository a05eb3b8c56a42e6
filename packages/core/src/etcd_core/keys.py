"""The key layout that Go and Python services share, and nothing else. Pure functions.

``P`` is the client's prefix without its trailing slash. Each part loses the slashes at both ends,
and empty parts are skipped, as ``go-core/etcd`` does::

    P/config/<name>/<dotted.lower.path>
    P/services/<name>/<id>
    P/locks/<key>/<lease id in hex>
    P/elections/<key>/<lease id in hex>
"""

from __future__ import annotations

import re

from .errors import InvalidArgument

DEFAULT_PREFIX = "/go-core"

_LEASE_SUFFIX = re.compile(rb"[0-9a-f]{1,16}")


def prefix_range_end(prefix: bytes) -> bytes:
    r"""Return the exclusive end of the range of all keys that start with ``prefix``.

    Trailing ``0xff`` bytes cannot be incremented, so they are dropped first; when nothing is left
    the range is open (``b"\0"``).

    Example:
        >>> prefix_range_end(b"a/")
        b'a0'
        >>> prefix_range_end(b"a\xff")
        b'b'
    """
    head = prefix.rstrip(b"\xff")
    if not head:
        return b"\0"
    return head[:-1] + bytes([head[-1] + 1])


def join(prefix: str, *parts: str) -> str:
    """Join the client's prefix and key parts into one key."""
    stripped = (part.strip("/") for part in parts)
    return "/".join([prefix.rstrip("/"), *(part for part in stripped if part)])


def require_name(operation: str, what: str, name: object) -> str:
    """Return ``name`` if it can be a part of a key.

    Raises:
        InvalidArgument: It is not a string, is empty once slashes are stripped, holds a NUL, or
            cannot be encoded as UTF-8.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"{operation}: {what} must be a str, not {type(name).__name__}")
    if not name.strip("/"):
        raise InvalidArgument(f"{operation}: {what} must not be empty (got {name!r})")
    if "\0" in name:
        raise InvalidArgument(f"{operation}: {what} {name!r} holds a NUL character")
    try:
        name.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f"{operation}: {what} {name!r} is not valid Unicode text") from exc
    return name


def require_segment(operation: str, what: str, name: object) -> str:
    """Return ``name`` if it can be one path segment: a name without ``/``.

    A service ``a`` must never list the instances of a service ``a/b``, so the slash is refused.

    Raises:
        InvalidArgument: As :func:`require_name`, or it holds a slash.
    """
    text = require_name(operation, what, name)
    if "/" in text:
        raise InvalidArgument(f"{operation}: {what} {text!r} must not hold '/'")
    return text


def config_prefix(prefix: str, name: str) -> str:
    """Return the prefix of all leaves of the configuration ``name``, with its trailing slash."""
    return join(prefix, "config", name) + "/"


def services_prefix(prefix: str, name: str) -> str:
    """Return the prefix of all instances of the service ``name``, with its trailing slash."""
    return join(prefix, "services", name) + "/"


def service_key(prefix: str, name: str, instance_id: str) -> str:
    """Return the key of one service instance."""
    return join(prefix, "services", name, instance_id)


def lock_prefix(prefix: str, key: str) -> str:
    """Return the prefix of the lock's queue, with its trailing slash."""
    return join(prefix, "locks", key) + "/"


def election_prefix(prefix: str, key: str) -> str:
    """Return the prefix of the election's queue, with its trailing slash."""
    return join(prefix, "elections", key) + "/"


def queue_key(queue: bytes, lease_id: int) -> bytes:
    """Return the key of one contender: the queue's prefix and its lease id in hex."""
    return queue + b"%x" % lease_id


def is_queue_key(queue: bytes, key: bytes) -> bool:
    """Tell whether ``key`` is a contender of ``queue`` itself, not of a queue nested under it.

    The range of the lock ``a`` also covers the keys of a lock ``a/b``; Go's recipe takes those for
    contenders (semantics M12), ours must not.
    """
    return key.startswith(queue) and _LEASE_SUFFIX.fullmatch(key[len(queue) :]) is not None
