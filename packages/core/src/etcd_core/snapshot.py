"""A configuration as it was read: its leaves, decoded once, and the snapshot that users hold.

No I/O and no thread; everything here may be used from any thread and after ``fork()``.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from .errors import DecodeError, InvalidArgument
from .leaves import Value, decode_leaf, encode_leaf, leaf_path, nest
from .mirror import Cause, Entry, View
from .wire.channel import StoreClock

# -- decoding ----------------------------------------------------------------------------------


class Leaf(NamedTuple):
    """One stored key as it was read.

    Attributes:
        key: The etcd key.
        raw: The stored bytes.
        name: The key without the configuration's prefix, as it is spelled in the store.
        path: The dotted path that ``name`` means: in lower case.
        value: What ``raw`` decodes to; shared, so never hand it out uncopied.
        error: Why there is no value, or no path.
    """

    key: bytes
    raw: bytes
    name: str
    path: str
    value: Value
    error: DecodeError | None


class LeafTable(NamedTuple):
    """The leaves of one configuration at one revision. Read-only.

    Attributes:
        stored: Every key of the configuration, readable or not.
        found: The readable leaves by path. No path of a plain value lies above another path.
        errors: Why the others are not among them, by path (or by spelling, where that is no path).
    """

    stored: Mapping[bytes, Leaf]
    found: Mapping[str, Leaf]
    errors: Mapping[str, DecodeError]


class LeafDecoder:
    """Turns stored keys into leaves; decodes again only what changed since its last reading.

    Safe to use from any thread and after ``fork()``; no I/O. Several configurations (the layers of
    a settings object) may share one, each with a prefix of its own.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Mapping[bytes, Leaf]] = {}

    def read(self, entries: Iterable[Entry], prefix: bytes) -> LeafTable:
        """Return the leaves among ``entries`` that lie directly under ``prefix``.

        Args:
            entries: Keys as they were read; those of other configurations are passed over.
            prefix: The configuration's prefix, with its trailing slash.
        """
        known = self._known.get(prefix, {})
        stored: dict[bytes, Leaf] = {}
        for entry in entries:
            leaf = known.get(entry.key)
            if leaf is None and not is_own(entry.key, prefix):
                continue
            # By bytes and not by mod_revision: a store that was reset counts anew.
            if leaf is None or leaf.raw != entry.value:
                leaf = _decoded(entry, prefix)
            stored[entry.key] = leaf
        if stored:
            self._known[prefix] = stored
        else:
            self._known.pop(prefix, None)
        return _tabulated(stored)

    def forget_others(self, prefixes: Collection[bytes]) -> None:
        """Let go of the leaves of configurations that are gone.

        Args:
            prefixes: Of those that may be read again.
        """
        for prefix in list(self._known):
            if prefix not in prefixes:
                self._known.pop(prefix, None)


def is_own(key: bytes, prefix: bytes) -> bool:
    """Tell whether ``key`` is a leaf of the configuration itself, not of one named below it."""
    return key.startswith(prefix) and key.find(b"/", len(prefix)) < 0


def _decoded(entry: Entry, prefix: bytes) -> Leaf:
    suffix = entry.key[len(prefix) :]
    name = suffix.decode(errors="backslashreplace")
    try:
        path = leaf_path(suffix.decode())
    except (InvalidArgument, UnicodeDecodeError):
        error = DecodeError(f"config: the stored key {name!r} is not a path", key=name)
        return Leaf(entry.key, entry.value, name, name, None, error)
    try:
        return Leaf(entry.key, entry.value, name, path, decode_leaf(entry.value, path), None)
    except DecodeError as exc:
        return Leaf(entry.key, entry.value, name, path, None, exc)


def _tabulated(stored: Mapping[bytes, Leaf]) -> LeafTable:
    found: dict[str, Leaf] = {}
    errors: dict[str, DecodeError] = {}
    for leaf in stored.values():
        if leaf.error is not None:
            errors[leaf.path] = leaf.error
            continue
        other = found.setdefault(leaf.path, leaf)
        if other is not leaf:
            # By name: what counts must not depend on when which key was written.
            kept, hidden = sorted(
                (leaf, other), key=lambda each: (each.name != each.path, each.name)
            )
            found[leaf.path] = kept
            errors[hidden.name] = DecodeError(
                f"config: {hidden.name!r} and {kept.name!r} are one path; the second counts",
                key=hidden.name,
            )
    for path in _values_above_others(found):
        del found[path]
        errors[path] = DecodeError(
            f"config: {path!r} holds a value, but there are leaves below it", key=path
        )
    return LeafTable(stored, MappingProxyType(found), MappingProxyType(errors))


def canonical(leaf: Leaf) -> bytes:
    """Return the leaf as we would write it, so that two spellings of one value compare equal."""
    if leaf.error is not None:
        return leaf.raw
    try:
        return encode_leaf(leaf.value, leaf.path)
    except InvalidArgument:
        # Others may store what we refuse to; it equals only itself.
        return leaf.raw


def _values_above_others(found: Mapping[str, Leaf]) -> list[str]:
    return [path for path in tables_of(found) if path in found and not is_table(found[path].value)]


def tables_of(paths: Iterable[str]) -> set[str]:
    """Return every path that lies above one of ``paths``."""
    tables: set[str] = set()
    parents = {path.rpartition(".")[0] for path in paths}
    while parents := parents - tables - {""}:
        tables |= parents
        parents = {parent.rpartition(".")[0] for parent in parents}
    return tables


def is_table(value: Value) -> bool:
    """Tell whether a leaf holds a table, so that other leaves may lie below it."""
    return isinstance(value, dict)


# -- snapshots ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigDiff:
    """What differs between two snapshots, by dotted path. False when nothing does.

    Attributes:
        changed: In both, with another value.
        added: Only in the newer one.
        removed: Only in the older one.
    """

    changed: frozenset[str]
    added: frozenset[str]
    removed: frozenset[str]

    def __bool__(self) -> bool:
        """Tell whether anything differs."""
        return bool(self.changed or self.added or self.removed)


class Origin(NamedTuple):
    """Which store a snapshot was read from, and how often that had been reset by then."""

    store: weakref.ref[StoreClock]
    epoch: int


class ConfigSnapshot(Mapping[str, Value]):
    """A configuration as it was at one revision: a read-only mapping of dotted path to value.

    Immutable and safe to use from any thread, also after ``fork()``; no I/O. Leaves are decoded at
    the first look. Lists and tables that it gives out are copies. Leaves that do not decode are in
    :attr:`errors` and nowhere else. Made by :class:`ConfigSource`.

    Example:
        >>> snapshot = client.config_source().load()
        >>> snapshot["server.port"], snapshot.nested()["server"]
        (8080, {'port': 8080, 'host': 'localhost'})
    """

    def __init__(
        self,
        name: str,
        prefix: bytes,
        view: View,
        cause: Cause,
        decoder: LeafDecoder,
        origin: Origin,
    ) -> None:
        self._name = name
        self._prefix = prefix
        self._view = view
        self._cause = cause
        self._decoder = decoder
        self._origin = origin
        self._decoded: LeafTable | None = None

    @property
    def name(self) -> str:
        """The configuration's name."""
        return self._name

    @property
    def revision(self) -> int:
        """The store's revision that this is the state of."""
        return self._view.revision

    @property
    def cause(self) -> str:
        """Why it was made: ``"initial"``, ``"change"``, ``"resync"`` or ``"reset"``."""
        return self._cause.value

    @property
    def exists(self) -> bool:
        """Whether anything is stored under the name, readable or not."""
        return any(is_own(key, self._prefix) for key in self._view.entries)

    @property
    def errors(self) -> Mapping[str, DecodeError]:
        """The stored leaves that cannot be used, by path, each with its reason."""
        return self._table.errors

    def nested(self) -> dict[str, object]:
        """Return the configuration as nested tables. They are the caller's to change."""
        return nest({path: leaf.value for path, leaf in self._table.found.items()})

    def diff(self, old: ConfigSnapshot) -> ConfigDiff:
        """Return what changed from ``old`` to this one.

        A value whose type changed (``1`` to ``true``) is changed; one whose YAML was only spelled
        in another way is not.
        """
        new_leaves, old_leaves = self._table.found, old._table.found
        changed = (
            path
            for path, leaf in new_leaves.items()
            if path in old_leaves and not _same_value(leaf, old_leaves[path])
        )
        return ConfigDiff(
            changed=frozenset(changed),
            added=frozenset(new_leaves.keys() - old_leaves.keys()),
            removed=frozenset(old_leaves.keys() - new_leaves.keys()),
        )

    def __getitem__(self, path: str) -> Value:
        """Return the value at a dotted path."""
        value = self._table.found[path].value
        return copy.deepcopy(value) if isinstance(value, (list, dict)) else value

    def __contains__(self, path: object) -> bool:
        """Tell whether there is a readable leaf at ``path``."""
        return path in self._table.found

    def __iter__(self) -> Iterator[str]:
        """Yield the dotted paths."""
        return iter(self._table.found)

    def __len__(self) -> int:
        """Return the number of readable leaves."""
        return len(self._table.found)

    def __repr__(self) -> str:
        """Return the name, the revision and the number of leaves; no value."""
        leaves = sum(is_own(key, self._prefix) for key in self._view.entries)
        return f"<ConfigSnapshot {self._name!r} revision={self.revision} leaves={leaves}>"

    @property
    def _table(self) -> LeafTable:
        """The leaves, decoded at the first look. Internal: its values are not copies."""
        if self._decoded is None:
            # Two threads may both decode, to the same result; a lock would not survive a fork.
            self._decoded = self._decoder.read(self._view.entries.values(), self._prefix)
        return self._decoded


def _same_value(one: Leaf, other: Leaf) -> bool:
    # Not "==": to Python 1, 1.0 and True are equal, and NaN is not.
    return one.raw == other.raw or canonical(one) == canonical(other)
