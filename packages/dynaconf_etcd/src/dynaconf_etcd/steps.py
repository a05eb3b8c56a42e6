"""What one swap changed, by dotted path, and the comparison it rests on. Immutable, any thread."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from . import internals
from .internals import Settings


@dataclass(frozen=True)
class Step:
    """What one swap did.

    Attributes:
        before: The settings before it; no later change touches them.
        after: The settings after it.
        revision: The store's revision.
    """

    before: Settings
    after: Settings
    revision: int

    @property
    def differs(self) -> bool:
        """Whether any setting has another value."""
        return bool(self.changed or self.added or self.removed)

    @property
    def changed(self) -> frozenset[str]:
        """The paths that have another value."""
        return self._difference[0]

    @property
    def added(self) -> frozenset[str]:
        """The paths that were not there."""
        return self._difference[1]

    @property
    def removed(self) -> frozenset[str]:
        """The paths that are gone."""
        return self._difference[2]

    @cached_property
    def removed_names(self) -> frozenset[str]:
        """The top-level names that are gone."""
        before, after = internals.raw_store(self.before), internals.raw_store(self.after)
        return frozenset(dict.keys(before) - dict.keys(after))

    @cached_property
    def _difference(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        before, after = internals.raw_store(self.before), internals.raw_store(self.after)
        old: dict[str, object] = {}
        new: dict[str, object] = {}
        for name in dict.keys(before) | dict.keys(after):
            if name in internals.internal_names():
                continue
            one, other = dict.get(before, name, _MISSING), dict.get(after, name, _MISSING)
            if not same(one, other):
                old.update(_leaves(name.lower(), one))
                new.update(_leaves(name.lower(), other))
        return (
            frozenset(path for path in old.keys() & new.keys() if not same(old[path], new[path])),
            frozenset(new.keys() - old.keys()),
            frozenset(old.keys() - new.keys()),
        )


_MISSING = object()


def _leaves(path: str, value: object) -> Iterator[tuple[str, object]]:
    if value is _MISSING:
        return
    if isinstance(value, dict) and value:
        for key, item in dict.items(value):
            yield from _leaves(f"{path}.{str(key).lower()}", item)
    else:
        yield path, value


def same(one: object, other: object) -> bool:
    """Tell whether two raw values are one setting: 1, 1.0 and True are three, NaN is itself."""
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return dict.keys(one) == dict.keys(other) and all(
            same(item, dict.__getitem__(other, key)) for key, item in dict.items(one)
        )
    if isinstance(one, list) and isinstance(other, list):
        items, others = list.__iter__(one), list.__iter__(other)
        return len(one) == len(other) and all(map(same, items, others))
    if hasattr(one, "_dynaconf_lazy_format") and hasattr(other, "_dynaconf_lazy_format"):
        return str(one) == str(other)
    if isinstance(one, str) and isinstance(other, str):
        return one == other
    return type(one) is type(other) and (bool(one == other) or (one != one and other != other))
