"""From leaves to what Dynaconf stores: names that are refused, and strings that stay strings.

Dynaconf evaluates strings that begin with ``@`` (``@format``, ``@jinja``, ``@read_file`` ...), and
some names make it import modules. Whoever may write to etcd must not run code here. Pure functions.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any, Final

import dynaconf.base
from dynaconf.base import Settings
from dynaconf.utils.parse_conf import Lazy

from etcd_core.events import Event, fields

_log = logging.getLogger("etcd_core.dynaconf")

_REFUSED_TOP: Final = frozenset(
    {
        # What Dynaconf itself reads by these names, from the settings or from its arguments.
        "BOX_SETTINGS",
        "CORE_LOADERS",
        "DEFAULT_SETTINGS_PATHS",
        "DYNABOXIFY",
        "ENVVAR_PREFIX",
        "FILTER_STRATEGY",
        "INCLUDES",
        "LOAD_DOTENV",
        "LOADERS",
        "POST_HOOKS",
        "PRELOAD",
        "ROOT_PATH",
        "SETTINGS_FILE",
        "SETTINGS_FILES",
        "SETTINGS_MODULE",
        "VALIDATE_EXCLUDE",
        "VALIDATE_ONLY",
        "VALIDATE_ONLY_CURRENT_ENV",
        "VALIDATORS",
        "YAML",
        # What from_env(keep=True) takes for an argument, and with it the power to run code.
        "DOTENV_PATH",
        "ENVVAR",
        "INDEX_SEPARATOR",
        "NESTED_SEPARATOR",
        "REDIS_ENABLED",
        "SYSENV_FALLBACK",
        "VAULT_ENABLED",
        "YAML_LOADER",
    }
)
_FILES_UNLESS_A_TABLE: Final = "SECRETS"
"""Of such an argument too: paths of files to run. A table is the program's own business."""

_MERGE_MARKS: Final = frozenset({"DYNACONF_MERGE", "DYNACONF_MERGE_UNIQUE"})
_warned: set[str] = set()

MISSING: Final = object()
"""What stands for a setting that is not there."""


class Literal(str):
    """A string that Dynaconf takes for what it is, whatever it begins with.

    A later environment variable or validator on the same table parses all its strings again, so it
    is not enough to keep this one from being parsed once.
    """

    __slots__ = ()

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """Split as str does; the head equals no other string, so it is no converter's name."""
        head, found, tail = str.partition(self, sep)
        return _Head(head), found, tail

    def startswith(self, prefix: Any, /, *bounds: Any) -> bool:
        """Answer as str does, but deny beginning with any of Dynaconf's converters."""
        if isinstance(prefix, tuple) and "@format" in prefix:
            return False
        return str.startswith(self, prefix, *bounds)

    def __reduce__(self) -> tuple[type[Literal], tuple[str]]:
        return Literal, (str.__str__(self),)


class _Head(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


def tree_of(tables: Mapping[str, object], separator: str, *, evaluate: bool) -> dict[str, object]:
    """Return what a layer contributes, by upper-case top-level name.

    Args:
        tables: The layer's nested tables; they may be changed and shared by the result.
        separator: Dynaconf's separator of nested names; ``foo__bar`` at the top is ``foo.bar``.
        evaluate: Leave ``@`` strings to Dynaconf.
    """
    tree: dict[str, object] = {}
    # Sorted: what counts must not depend on when which key was written.
    for name, value in sorted(tables.items()):
        if _is_ignored_name(name, value, separator):
            warn_once(name, "is a name of Dynaconf's own; ignored")
            continue
        top, *below = _split(name, separator)
        safe = value if evaluate else _safe(value, name)
        for segment in reversed(below):
            safe = {segment: safe}
        top = top.upper()
        held = tree.get(top)
        tree[top] = _merged(held, safe) if isinstance(held, dict) else safe
    return tree


def _merged(one: dict[str, object], other: object) -> object:
    from etcd_core.leaves import overlay

    return overlay(one, other) if isinstance(other, dict) else other


def _split(name: str, separator: str) -> list[str]:
    parts = name.split(separator) if separator else [name]
    return parts if all(parts) else [name]


# -- names -------------------------------------------------------------------------------------


def is_ignored(path: str, separator: str, value: object = None) -> bool:
    """Tell whether a setting at this path, or anything in its value, is not taken from etcd."""
    name, *below = path.split(".")
    top = {} if below else value
    return (
        _is_ignored_name(name, top, separator)
        or any(map(is_merge_mark, below))
        or _holds_merge_mark(value)
    )


def _holds_merge_mark(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(is_merge_mark(key) or _holds_merge_mark(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and any(map(_holds_merge_mark, value))


def _is_ignored_name(name: str, value: object, separator: str) -> bool:
    head = name.partition(separator)[0] if separator else name
    if is_reserved(name) or is_reserved(head) or any(map(is_merge_mark, _split(name, separator))):
        return True
    return _folded(name) == _FILES_UNLESS_A_TABLE and not isinstance(value, dict)


def is_reserved(top: str) -> bool:
    """Tell whether a top-level name is Dynaconf's own, however it is spelled."""
    # An index may follow a name, and Dynaconf strips some of the names that it stores.
    return any(map(_is_own, {_folded(top), _folded(top.partition("[")[0].strip())}))


def is_merge_mark(segment: object) -> bool:
    """Tell whether a key tells Dynaconf to merge."""
    return isinstance(segment, str) and _is_merge_mark(segment)


@functools.lru_cache(maxsize=16384)
def _is_merge_mark(segment: str) -> bool:
    # Asked for each leaf of each revision, and the names stay mostly the same.
    return _folded(segment) in _MERGE_MARKS


def _folded(name: str) -> str:
    """Return a name as Dynaconf looks it up: whatever its case, and with spaces for underscores."""
    # Lowered first: some letters, as the sign of Kelvin, are those of ASCII in lower case only.
    return name.replace(" ", "_").lower().upper()


def _is_own(name: str) -> bool:
    return (
        name in _REFUSED_TOP
        or name in _MERGE_MARKS
        or name.startswith(("DYNACONF_", "_"))
        or name.endswith("_FOR_DYNACONF")
        or name in dynaconf.base.UPPER_DEFAULT_SETTINGS
        or name in _RESERVED_ATTRS
    )


_RESERVED_ATTRS: Final = frozenset(
    name.upper() for name in dynaconf.base.RESERVED_ATTRS if name.startswith("_")
)


# -- values ------------------------------------------------------------------------------------


def _safe(value: object, path: str) -> object:
    """Return ``value`` with nothing in it that Dynaconf would act upon."""
    if isinstance(value, str):
        return Literal(value) if value.startswith("@") else value
    if isinstance(value, dict):
        table: dict[str, object] = {}
        for key, item in value.items():
            if is_merge_mark(key):
                warn_once(f"{path}.{key}", "is a merge mark of Dynaconf's own; ignored")
            else:
                table[key] = _safe(item, path)
        return table
    if isinstance(value, list):
        return [_safe(item, path) for item in value]
    return value


def copied(value: object) -> object:
    """Copy tables and lists into plain ones without evaluating what is in them."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in dict.items(value)}
    if isinstance(value, list):
        return [copied(item) for item in list.__iter__(value)]
    # What is computed notes on itself for whom: shared, it would tell one reader another's values.
    return copy.copy(value) if isinstance(value, Lazy) else value


def value_at(settings: Settings, key: str) -> object:
    """Return a setting as the program sees it, or :data:`MISSING`."""
    try:
        return settings.get(key, MISSING)
    except (AttributeError, IndexError, ValueError):
        # A plain value stands where the path goes on, or a list that ends before or has no names.
        return MISSING


def warn_once(path: str, what: str) -> None:
    """Log a warning about a path in etcd, once per process."""
    if path not in _warned:
        _warned.add(path)
        _log.warning(
            "dynaconf: the etcd setting %r %s",
            path,
            what,
            extra=fields(Event.CONFIG_IGNORED, path=path, reason=what),
        )


def _represent_literal_in_yaml() -> None:
    import yaml

    for dumper in (yaml.SafeDumper, getattr(yaml, "CSafeDumper", yaml.SafeDumper)):
        dumper.add_representer(Literal, lambda dumper, text: dumper.represent_str(str(text)))


_represent_literal_in_yaml()
