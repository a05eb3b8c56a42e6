"""Where a setting comes from, and what it hides. Reads what Dynaconf recorded; no I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from etcd_core import InvalidArgument
from etcd_core.leaves import leaf_path
from etcd_core.masking import masked

from . import internals
from .internals import Settings, SourceMetadata
from .layers import MAIN
from .live import Live
from .state import live_of
from .values import MISSING, copied, value_at


@dataclass(frozen=True)
class Provider:
    """One source that provides a setting.

    Attributes:
        layer: ``"default"``, ``"file"``, ``"etcd"``, ``"env"``, ``"hook"``, ``"validator"`` or
            ``"program"``.
        source: The file's path, the etcd key, the name of the environment variable, or Dynaconf's
            name for it.
        env: Dynaconf's environment that it is for.
        revision: Of an etcd key: the revision of its last change; else 0.
        value: Masked where it looks like a secret.
    """

    layer: str
    source: str
    env: str
    revision: int
    value: object


@dataclass(frozen=True)
class Explanation:
    """Where a setting comes from.

    Attributes:
        key: As asked for.
        value: As the program sees it; masked where it looks like a secret.
        exists: Whether there is such a setting.
        provider: The source whose value counts; None if no source is known.
        overrides: The sources below it that provide it too, nearest first. For a table they are
            those that provide a part of it.
    """

    key: str
    value: object
    exists: bool
    provider: Provider | None
    overrides: tuple[Provider, ...] = field(default=())


def explain(settings: object, key: str) -> Explanation:
    """Return where a setting comes from and what it overrides. No I/O.

    Values whose path looks like a secret (``password``, ``token``, ...) are masked, as are those in
    tables.

    Args:
        settings: What the program holds.
        key: A name or a dotted path, with numbers for the items of lists.

    Raises:
        InvalidArgument: They do not load from etcd, or ``key`` is no path.

    Example:
        >>> explain(settings, "server.port").provider
        Provider(layer='etcd', source='/go-core/config/app/server.port', ...)
    """
    if not isinstance(key, str):
        raise InvalidArgument(f"explain: the key must be a str, not {type(key).__name__}")
    live = live_of(settings, "explain")
    path = leaf_path(key.replace("__", "."))
    inside = live.settings
    assert inside is not None  # the caller holds it
    value = value_at(inside, key)
    providers = list(_providers(inside, live, path))
    providers.reverse()
    exists = value is not MISSING
    return Explanation(
        key=key,
        value=shown(path, value) if exists else None,
        exists=exists,
        provider=providers[0] if providers and exists else None,
        overrides=tuple(providers[1:] if exists else providers),
    )


def _providers(inside: Settings, live: Live, path: str) -> Iterator[Provider]:
    for source, values in internals.history(inside).items():
        if source.loader == internals.LOADER:
            yield from _in_etcd(live, source, path, _separator(inside))
        elif source.loader.startswith("env"):
            yield from _in_environment(inside, source, path)
        elif not _is_internal(source):
            value = _look_up_in(values, path)
            if value is not MISSING:
                layer = _layer(source)
                yield Provider(layer, source.identifier, source.env, 0, shown(path, value))


def _separator(inside: Settings) -> str:
    separator: str = inside.get("NESTED_SEPARATOR_FOR_DYNACONF") or ""
    return separator


def _is_internal(source: SourceMetadata) -> bool:
    # A validator stores what it found once more, under a name of its own.
    own = ("default_settings", "_root_path", "settings_module_method", "validator")
    return source.identifier in own


def _layer(source: SourceMetadata) -> str:
    if source.loader == "set_method":
        if source.identifier == "undefined":
            return "program"
        return "default" if source.identifier.startswith("init_") else "hook"
    if source.loader in ("setdefault", "validation_default"):
        return "validator"
    return "file"


def _in_etcd(live: Live, source: SourceMetadata, path: str, separator: str) -> Iterator[Provider]:
    place = live.accepted.place
    inside = live.settings
    default = (inside and inside.get("DEFAULT_ENV_FOR_DYNACONF")) or "default"
    layer = MAIN if source.env.lower() == default.lower() else source.env.lower()
    for name, leaf in live.accepted.leaves(layer).items():
        spelled = name.replace(separator, ".") if separator else name
        value = MISSING
        if path == spelled or spelled.startswith(f"{path}."):
            value = leaf.value
        elif path.startswith(f"{spelled}."):
            value = _look_up_in(leaf.value, path[len(spelled) + 1 :])
        if value is not MISSING:
            key = place.layer_prefix(layer).decode() + leaf.name
            modified = live.accepted.view.entries[leaf.key].mod_revision
            yield Provider("etcd", key, source.env, modified, shown(spelled, value))


def _in_environment(inside: Settings, source: SourceMetadata, path: str) -> Iterator[Provider]:
    prefix = f"{source.identifier}_" if source.identifier else ""
    separator = _separator(inside)
    for name, text in os.environ.items():
        if not name.startswith(prefix):
            continue
        spelled = name[len(prefix) :]
        spelled = (spelled.replace(separator, ".") if separator else spelled).lower()
        if spelled == path or spelled.startswith(f"{path}.") or path.startswith(f"{spelled}."):
            yield Provider("env", name, source.env, 0, shown(spelled, text))


def _look_up_in(value: object, path: str) -> object:
    """Return what lies at a path in raw tables, whatever the case of their keys."""
    for segment in path.split("."):
        items: Iterable[tuple[object, object]] = ()
        if isinstance(value, list):
            items = enumerate(list.__iter__(value))
        elif isinstance(value, Mapping):
            items = dict.items(value) if isinstance(value, dict) else value.items()
        value = next((item for key, item in items if str(key).lower() == segment), MISSING)
    return value


def shown(path: str, value: object) -> object:
    """Return a value as it may be shown: masked where its path or its form looks like a secret."""
    return masked(path, copied(value))
