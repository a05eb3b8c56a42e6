"""The Dynaconf loader: put ``"dynaconf_etcd.loader"`` into ``LOADERS_FOR_DYNACONF``.

Before ``"dynaconf.loaders.env_loader"`` it gives env > etcd > files; after it, etcd > env. Dynaconf
calls :func:`load` in whichever thread loads the settings; that may be in a process that will fork,
so it leaves no thread and no channel behind there.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextvars import ContextVar

from dynaconf.utils.parse_conf import parse_conf_data

from etcd_core import DecodeError

from . import (
    internals,
    options,
    snapshot_file,
    switching,  # noqa: F401  (makes changes of environment swaps)
)
from .building import pinned
from .feed import Feed, feed_for
from .internals import LazySettings, Settings, SourceMetadata, Validator
from .layers import MAIN, Refused, Revision
from .live import Live, add, add_child, find, origin_of, remember
from .reasons import reasons_of
from .validating import quieten
from .values import copied

_loading: ContextVar[Feed | None] = ContextVar("dynaconf_etcd_loading", default=None)


def load(
    obj: Settings,
    env: str | None = None,
    silent: bool = True,
    key: str | None = None,
    **_other: object,
) -> None:
    """Put the etcd layers of ``obj`` over what is loaded so far. Called by Dynaconf.

    Blocks for one read at the first load, at most ``dial_timeout``; later loads (``reload()``,
    ``from_env()``, ``using_env()``) use what was accepted last.

    Args:
        obj: The settings being loaded.
        env: The environment, or several with commas between.
        silent: Not heeded: settings without the values they should have are worse than an error.
            Use the option ``required``.
        key: Load only this top-level name.

    Raises:
        EtcdError: etcd cannot be reached, and nothing else provides the values.
        InvalidConfig: The options are unusable.
    """
    caller = internals.Caller(Live.build_aside.__code__)
    layers = _layers(obj, env)
    used = frozenset(layer for layer, _ in layers)
    feed, revision = _known(obj, caller) or _built(obj, caller) or _first(obj, caller, used)
    feed.layers |= used
    try:
        for layer, name in layers:
            _apply(obj, feed, revision, layer, name, key)
    except Refused as exc:
        if pinned() is not None:
            raise  # the build takes it for the reason of its refusal
        if caller.parent is not None:
            internals.forget_environments(caller.parent)
        raise _unusable(feed, exc) from None
    internals.clear_cache(obj)


def _unusable(feed: Feed, refused: Refused) -> DecodeError:
    name = feed.options.name
    return DecodeError(f"settings {name!r}: {refused}", key=name)


def _known(obj: Settings, caller: internals.Caller) -> tuple[Feed, Revision] | None:
    """Return what a settings object that was loaded before, or its parent, accepted."""
    live = find(obj)
    if live is None and caller.parent is not None:
        live = find(caller.parent)
        if live is not None:
            add_child(obj, live)
    if live is None:
        return _of_a_snapshot(obj, caller)
    quieten(obj)
    if not live.feed.options.watch and find(obj) is live and pinned() is None:
        live.read_again(obj)
    return live.feed, live.accepted


def _of_a_snapshot(obj: Settings, caller: internals.Caller) -> tuple[Feed, Revision] | None:
    """Return what a snapshot of live settings is of, or the snapshot that this is to be part of."""
    origin = origin_of(obj)
    if origin is None and caller.parent is not None:
        origin = origin_of(caller.parent)
        if origin is not None:
            remember(obj, *origin)
    if origin is None:
        return None
    quieten(obj)
    live, revision = origin
    return live.feed, revision


def _built(obj: Settings, caller: internals.Caller) -> tuple[Feed, Revision] | None:
    """Return what a build that is going on here is for; None for what is no part of it."""
    now = pinned()
    if now is None or (caller.lazy is not None and caller.parent is None):
        return None
    quieten(obj)
    if caller.parent is not None:
        now.environments.append(obj)
    return now.feed, now.revision


def _first(obj: Settings, caller: internals.Caller, used: frozenset[str]) -> tuple[Feed, Revision]:
    chosen = options.read(obj)
    if chosen.snapshot is not None:
        snapshot_file.require_folder(chosen.snapshot)
    feed = feed_for(chosen)
    feed.layers |= used
    if _loading.get() is feed:
        # By a log record about this very load, in a program whose handlers read their settings:
        # to log again would not end. What is made here gives way to what is being loaded.
        return feed, feed.newest or feed.nothing()
    token = _loading.set(feed)
    held = internals.held_by(caller.lazy)
    try:
        return feed, _loaded(obj, caller, feed)
    except BaseException:
        # What such a handler made must not stay in the place of what could not be loaded.
        internals.hold(caller.lazy, held)
        raise
    finally:
        _loading.reset(token)


def _loaded(obj: Settings, caller: internals.Caller, feed: Feed) -> Revision:
    try:
        revision = feed.first()
    except Refused as exc:
        raise _unusable(feed, exc) from None
    live = Live(obj, caller.lazy, feed, revision)
    if feed.refusal is not None:
        live.refuse(*feed.refusal)
    former = _former(caller.lazy, feed)
    if former is not None and former.rejected is not None:
        # Made anew by configure(): what was refused is no better for that.
        live.accepted = revision = former.accepted
        live.refuse(former.rejected.revision, former.rejected.reasons)
    elif feed.options.snapshot is not None:
        revision = _tried(obj, live, revision, caller.late)
    add(obj, live)
    quieten(obj)
    feed.follow(weakref.ref(live))
    if feed.options.watch:
        _when_running(feed)
    return revision


def _former(lazy: LazySettings | None, feed: Feed) -> Live | None:
    """Return what the lazy object holds so far, if that follows the same feed."""
    inside = internals.wrapped(lazy) if lazy is not None else None
    live = find(inside) if inside is not None else None
    return live if live is not None and live.feed is feed else None


def _tried(obj: Settings, live: Live, revision: Revision, late: Sequence[Validator]) -> Revision:
    """Return the revision if it passes validation, else the last-known-good one.

    Otherwise a restart would fail on what the running processes refused.
    """
    feed = live.feed
    if revision.cause == snapshot_file.CAUSE:
        return revision
    try:
        built = live.build(obj, revision)
        if late:
            built.validators.extend(late)
            built.validators.validate_all()
    except Exception as exc:  # a file, a hook or a validator of the user may raise anything
        saved = feed.saved()
        if saved is None:
            return revision  # Dynaconf's own validation is about to raise the same
        reasons = reasons_of(exc, revision, saved, obj)
        feed.fall_back(saved, "; ".join(reasons))
        live.accepted = saved
        live.refuse(revision.number, reasons)
        return saved
    if not feed.options.watch:
        feed.keep(revision)
    return revision


def _when_running(feed: Feed) -> None:
    try:
        from etcd_core.hosting import when_running
    except ImportError:
        feed.start()
    else:
        when_running(feed.start)


def _layers(obj: Settings, env: str | None) -> list[tuple[str, str]]:
    """Return the layers to load, lowest first, each with the environment it is for."""
    if not obj.get("ENVIRONMENTS_FOR_DYNACONF"):
        return [(MAIN, "default")]
    names: list[str] = []
    for several in (obj.current_env, env):
        names += [name.strip().lower() for name in (several or "").split(",")]
    default = (obj.get("DEFAULT_ENV_FOR_DYNACONF") or "default").lower()
    own = dict.fromkeys(name for name in names if name and name not in (default, "global"))
    return [(MAIN, default), *((name, name) for name in own), ("global", "global")]


def _apply(
    obj: Settings, feed: Feed, revision: Revision, layer: str, env: str, key: str | None
) -> None:
    from etcd_core.leaves import overlay

    separator = obj.get("NESTED_SEPARATOR_FOR_DYNACONF") or ""
    evaluate = feed.options.evaluate
    tree = revision.tree(layer, separator, evaluate=evaluate)
    if key is not None:
        tree = {name: value for name, value in tree.items() if name == key.upper()}
    source = SourceMetadata(internals.LOADER, feed.source, env)
    store = internals.raw_store(obj)
    for name, value in tree.items():
        below = dict.get(store, name)
        value = copied(value)
        if evaluate:
            value = parse_conf_data(value, box_settings=obj)
        if isinstance(value, dict) and isinstance(below, dict):
            value = overlay(below, value)
        internals.put(obj, name, value)
    _record(obj, source, tree, whole=key is None)


def _record(obj: Settings, source: SourceMetadata, tree: dict[str, object], *, whole: bool) -> None:
    history = internals.history(obj)
    if whole:
        history.pop(source, None)
    if tree:
        history.setdefault(source, {}).update(tree)
