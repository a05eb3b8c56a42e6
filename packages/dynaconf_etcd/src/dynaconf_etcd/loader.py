"""The Dynaconf loader: put ``"dynaconf_etcd.loader"`` into ``LOADERS_FOR_DYNACONF``.

Before ``"dynaconf.loaders.env_loader"`` it gives env > etcd > files; after it, etcd > env. Dynaconf
calls :func:`load` in whichever thread loads the settings; that may be in a process that will fork,
so it leaves no thread and no channel behind there.
"""

from __future__ import annotations

import weakref

from dynaconf.utils.parse_conf import parse_conf_data

from . import internals, options, snapshot_file
from .feed import Feed, feed_for
from .internals import LazySettings, Settings, SourceMetadata
from .layers import MAIN, Refused, Revision
from .live import Live, add, add_child, find, pinned
from .reasons import reasons_of
from .validating import quieten
from .values import copied


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
    caller = internals.Caller(Live.build.__code__)
    now = pinned()
    if now is not None and (caller.lazy is None or caller.parent is not None):
        feed, revision = now.feed, now.revision
    else:
        feed, revision = _known(obj, caller) or _first(obj, caller.lazy)
    for layer, name in _layers(obj, env):
        _apply(obj, feed, revision, layer, name, key)
    internals.clear_cache(obj)


def _known(obj: Settings, caller: internals.Caller) -> tuple[Feed, Revision] | None:
    """Return what a settings object that was loaded before, or its parent, accepted."""
    live = find(obj)
    if live is None and caller.parent is not None:
        live = find(caller.parent)
        if live is not None:
            add_child(obj, live)
    if live is None:
        return None
    if not live.feed.options.watch and find(obj) is live:
        live.read_again()
    return live.feed, live.accepted


def _first(obj: Settings, lazy: LazySettings | None) -> tuple[Feed, Revision]:
    chosen = options.read(obj)
    if chosen.snapshot is not None:
        snapshot_file.require_folder(chosen.snapshot)
    feed = feed_for(chosen)
    try:
        revision = feed.first()
    except Refused as exc:
        from etcd_core import DecodeError

        raise DecodeError(f"settings {feed.options.name!r}: {exc}", key=feed.options.name) from None
    live = Live(obj, lazy, feed, revision)
    if feed.refusal is not None:
        live.refuse(*feed.refusal)
    if feed.options.snapshot is not None:
        revision = _tried(obj, live, revision)
    add(obj, live)
    quieten(obj)
    feed.follow(weakref.ref(live))
    if feed.options.watch:
        _when_running(feed)
    return feed, revision


def _tried(obj: Settings, live: Live, revision: Revision) -> Revision:
    """Return the revision if it passes validation, else the last-known-good one.

    Otherwise a restart would fail on what the running processes refused.
    """
    feed = live.feed
    if revision.cause == snapshot_file.CAUSE:
        return revision
    try:
        live.build(obj, revision)
    except Exception as exc:  # a file, a hook or a validator of the user may raise anything
        saved = feed.saved()
        if saved is None:
            return revision  # Dynaconf's own validation is about to raise the same
        reasons = reasons_of(exc, revision, saved, obj)
        feed.fall_back(saved, "; ".join(reasons))
        live.accepted = saved
        live.refuse(revision.number, reasons)
        return saved
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
