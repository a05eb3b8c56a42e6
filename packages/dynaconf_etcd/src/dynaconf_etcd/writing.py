"""Writing settings to etcd: checked before, compared with what was loaded, awaited after.

Runs in the caller's thread.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from etcd_core import (
    UNSET,
    ConfigSnapshot,
    Conflict,
    InvalidArgument,
    RequestTimeout,
    Timeout,
    shared_client,
)
from etcd_core.config import Unset
from etcd_core.keys import config_prefix
from etcd_core.leaves import encode_leaf, flatten, leaf_path
from etcd_core.mirror import Cause, Entry, View
from etcd_core.snapshot import Origin, is_own
from etcd_core.wire.channel import check_timeout

from .layers import MAIN, Refused, Revision
from .live import Live
from .reasons import reasons_of
from .state import live_of
from .values import is_ignored


def write(
    settings: object,
    values: Mapping[str, object],
    env: str | None = None,
    *,
    timeout: Timeout = UNSET,
) -> int:
    """Write some settings to etcd, in one revision, and wait until this process shows them. Blocks.

    Files, hooks and validators of these settings are tried on the outcome first, so nothing is
    written that this process would refuse. Settings with an override above etcd (an environment
    variable) keep showing that.

    Args:
        settings: What the program holds.
        values: Nested tables or dotted paths; their siblings stay.
        env: The environment whose layer is written; None: the layer of all environments.
        timeout: Seconds for all of it.

    Returns:
        The revision that the settings show from now on.

    Raises:
        InvalidArgument: The values cannot be stored, these settings would refuse them, or they
            would never be seen: names of Dynaconf's own are ignored when they come from etcd.
        Conflict: Somebody changed one of these settings since they were loaded here; nothing was
            written. Try again when the change has arrived. Or they are written, and these settings
            refuse the revision for what others wrote; the text says which.
        RequestTimeout: They are written, but were not seen here in time.
        OutcomeUnknown: etcd gave no answer; they may have been written.
        EtcdError: etcd could not be reached or refused.

    Example:
        >>> write(settings, {"server.port": 9090})
    """
    if not isinstance(values, Mapping):
        raise InvalidArgument(f"write: a mapping is needed, not {type(values).__name__}")
    return _change(settings, flatten(values), (), env, timeout)


def delete(
    settings: object,
    key: str | Iterable[str],
    env: str | None = None,
    *,
    timeout: Timeout = UNSET,
) -> int:
    """Delete settings from etcd, in one revision, and wait until this process shows it. Blocks.

    What a file provides under the same name is shown again.

    Args:
        settings: What the program holds.
        key: A dotted path, or several; everything below one goes too.
        env: As for :func:`write`.
        timeout: As for :func:`write`.

    Returns:
        As :func:`write`.

    Raises:
        EtcdError: As :func:`write`.
    """
    if not isinstance(key, Iterable) or isinstance(key, (bytes, Mapping)):
        raise InvalidArgument(f"delete: a path or several are needed, not {type(key).__name__}")
    keys = [key] if isinstance(key, str) else list(key)
    return _change(settings, {}, [leaf_path(each) for each in keys], env, timeout)


def _change(
    settings: object,
    values: Mapping[str, object],
    doomed: Iterable[str],
    env: str | None,
    timeout: Timeout,
) -> int:
    check_timeout("write", timeout)
    live = live_of(settings, "write")
    if live.accepted.cause in ("snapshot", "absent"):
        raise Conflict("write: these settings do not come from etcd at present")
    options = live.feed.options
    seconds = options.config.timeout if isinstance(timeout, Unset) else timeout
    deadline = None if seconds is None else time.monotonic() + seconds
    layer = _layer_of(live, env)
    base = live.accepted
    _refuse_ignored(live, values)
    wanted = _wanted(base, layer, values, tuple(doomed))
    if wanted == dict(base.view.entries):
        return base.number
    _try_out(live, base, wanted, layer)
    with shared_client(options.config) as client:
        source = client.config_source(base.place.layer_name(layer))
        store = client.scope().engine.channel.store
        prefix = config_prefix(options.config.prefix, source.name).encode()
        own = {key: entry for key, entry in base.view.entries.items() if is_own(key, prefix)}
        expect = ConfigSnapshot(
            source.name,
            prefix,
            View(base.number, MappingProxyType(own)),
            Cause.INITIAL,
            live.feed.decoder,
            Origin(weakref.ref(store), store.epoch),
        )
        number = source.update(values, delete=doomed, expect=expect, timeout=seconds)
    _await(live, number, None if deadline is None else deadline - time.monotonic())
    return number


def _refuse_ignored(live: Live, values: Mapping[str, object]) -> None:
    inside = live.settings
    separator = (inside and inside.get("NESTED_SEPARATOR_FOR_DYNACONF")) or ""
    for path, value in values.items():
        if is_ignored(path, separator, value):
            raise InvalidArgument(
                f"write: {path!r} is, or holds, a name of Dynaconf's own; it would be lost"
            )


def _layer_of(live: Live, env: str | None) -> str:
    inside = live.settings
    if env is None or inside is None:
        return MAIN
    if not isinstance(env, str):
        raise InvalidArgument(f"write: the environment must be a str, not {type(env).__name__}")
    name = env.strip().lower()
    if not name or "/" in name:
        raise InvalidArgument(f"write: {env!r} is no environment")
    default = inside.get("DEFAULT_ENV_FOR_DYNACONF") or "default"
    return MAIN if name == default.lower() else name


def _wanted(
    base: Revision, layer: str, values: Mapping[str, object], doomed: tuple[str, ...]
) -> dict[bytes, Entry]:
    """Return the entries as they will be, if nobody else writes meanwhile."""
    prefix = base.place.layer_prefix(layer)
    table = base.tables.get(layer)
    entries = dict(base.view.entries)
    for leaf in table.found.values() if table is not None else ():
        if any(leaf.path == path or leaf.path.startswith(f"{path}.") for path in doomed):
            del entries[leaf.key]
    for path, value in values.items():
        key = prefix + path.encode()
        raw = encode_leaf(value, path)
        known = base.view.entries.get(key)
        if known is None or known.value != raw:
            entries[key] = Entry(key, raw, 0, 0, 0)
        else:
            entries[key] = known
    return entries


def _try_out(live: Live, base: Revision, wanted: dict[bytes, Entry], layer: str) -> None:
    inside = live.settings
    if inside is None:
        raise InvalidArgument("write: the settings object is gone")
    view = View(base.number, MappingProxyType(wanted))
    try:
        read = live.feed.layers | {layer}
        tried = Revision.decode(base.place, view, type(live.feed.decoder)(), read=read)
    except Refused as exc:
        raise InvalidArgument(f"write: {exc}") from None
    try:
        live.build(inside, tried)
    except Exception as exc:  # a file, a hook or a validator of the user may raise anything
        reasons = "; ".join(reasons_of(exc, tried, base, inside))
        raise InvalidArgument(f"write: these settings would refuse it: {reasons}") from None


def _await(live: Live, number: int, seconds: float | None) -> None:
    if not live.feed.watching:
        live.offer(live.feed.read())
    if not live.wait_for(number, seconds):
        raise RequestTimeout(f"write: written at revision {number}, but not seen here in time")
    refused = live.rejected
    if live.accepted.number < number and refused is not None:
        raise Conflict(
            f"write: written at revision {number}, but these settings refuse that revision for what"
            f" others wrote: {'; '.join(refused.reasons)}"
        )
