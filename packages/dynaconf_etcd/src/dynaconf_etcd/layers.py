"""All layers of one configuration at one revision: main, one per environment, and global.

One range of keys covers exactly ``{name}/`` and ``{name}.{env}/``, since ``.`` and ``/`` are
neighbours in ASCII: so one read
and one watch do, and all layers are of one revision. Immutable once made; used by any thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Final

from etcd_core import DecodeError, EtcdError
from etcd_core.keys import join
from etcd_core.leaves import nest
from etcd_core.mirror import View
from etcd_core.snapshot import Leaf, LeafDecoder, LeafTable

from .values import is_merge_mark, tree_of, warn_once

MAIN: Final = ""
"""The layer ``{name}/``: Dynaconf's default environment, and the only one without environments."""


class Refused(Exception):
    """A revision cannot be used as a whole.

    Attributes:
        reasons: Why, one text for each fault; no value is in them.
        revision: The store's revision; 0 where the fault was found later than by reading it.
        passing: Whether the same revision may be usable later.
    """

    def __init__(self, *reasons: str, revision: int = 0, passing: bool = False) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.revision = revision
        self.passing = passing


@dataclass(frozen=True)
class Place:
    """Where a configuration lives in the store.

    Attributes:
        prefix: The client's key prefix.
        name: The configuration's name.
    """

    prefix: str
    name: str

    @cached_property
    def base(self) -> bytes:
        """The beginning of all keys: prefix and name."""
        return join(self.prefix, "config", self.name).encode()

    @property
    def key(self) -> bytes:
        """The start of the range of all layers."""
        return self.base + b"."

    @property
    def range_end(self) -> bytes:
        """The exclusive end of that range."""
        return self.base + b"0"

    @property
    def described(self) -> str:
        """The beginnings of all keys, for people: of the main layer, and of the others."""
        base = self.base.decode()
        return f"{base}/ or {base}."

    def layer_prefix(self, layer: str) -> bytes:
        """Return the prefix of a layer's leaves, with its trailing slash."""
        return self.base + (f".{layer}/" if layer else "/").encode()

    def layer_name(self, layer: str) -> str:
        """Return the name of the configuration that a layer is to others."""
        return f"{self.name}.{layer}" if layer else self.name

    def layers_in(self, view: View) -> set[str]:
        """Return the layers that have keys."""
        return set(self._layers_of(view))

    def _layers_of(self, view: View) -> Iterator[str]:
        start = len(self.base)
        for head in {key[start : key.find(b"/", start)] for key in view.entries}:
            yield head[1:].decode(errors="backslashreplace")


@dataclass(frozen=True)
class Revision:
    """The layers at one revision, decoded. All their trees are shared: never change one.

    Attributes:
        place: Whose.
        view: The keys.
        cluster_id: The cluster they were read from; 0 where that is not known.
        cause: As :class:`etcd_core.ConfigSnapshot`; ``"snapshot"`` when read from the file.
        at: Unix time of the reading.
        faults: Why layers cannot be used, by layer; of those only that nobody here reads.
    """

    place: Place
    view: View
    cluster_id: int
    cause: str
    tables: Mapping[str, LeafTable]
    at: float = field(default_factory=time.time)
    faults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def decode(
        cls,
        place: Place,
        view: View,
        decoder: LeafDecoder,
        *,
        cluster_id: int = 0,
        cause: str = "initial",
        at: float | None = None,
        read: frozenset[str] | None = None,
    ) -> Revision:
        """Decode the layers of a view.

        Args:
            place: Where they lie.
            view: The keys.
            decoder: What decoded the layers of this place before.
            cluster_id: As the attribute.
            cause: As the attribute.
            at: As the attribute; None: now.
            read: The layers in use beside the main one; None: all. A fault in another one is told
                in the log, and raised by :meth:`tree` if that layer is needed after all.

        Raises:
            Refused: Leaves do not decode, or lie below a plain value.
        """
        tables = {
            layer: decoder.read(view.entries.values(), place.layer_prefix(layer))
            for layer in sorted(place.layers_in(view))
        }
        decoder.forget_others({place.layer_prefix(layer) for layer in tables})
        faults = {
            layer: tuple(f"{place.layer_name(layer)}: {error}" for error in found)
            for layer, table in tables.items()
            if (found := list(_faults_in(table)))
        }
        in_use = [layer for layer in faults if read is None or layer == MAIN or layer in read]
        if in_use:
            raise Refused(
                *(reason for layer in in_use for reason in faults[layer]), revision=view.revision
            )
        for layer, reasons in faults.items():
            why = "; ".join(reasons)
            warn_once(f"{place.layer_name(layer)}/", f"is not usable, and not read here: {why}")
        at = time.time() if at is None else at
        return cls(place, view, cluster_id, cause, MappingProxyType(tables), at, faults)

    @property
    def number(self) -> int:
        """The store's revision."""
        return self.view.revision

    @property
    def is_empty(self) -> bool:
        """Whether no layer has a leaf."""
        return not any(table.found for table in self.tables.values())

    def leaves(self, layer: str) -> Mapping[str, Leaf]:
        """Return the leaves of a layer by dotted path."""
        table = self.tables.get(layer)
        return table.found if table is not None else {}

    def tree(self, layer: str, separator: str, *, evaluate: bool) -> dict[str, object]:
        """Return what a layer contributes, by upper-case top-level name; computed once.

        Raises:
            Refused: Its leaves do not decode, or contradict each other.
        """
        if layer in self.faults:
            raise Refused(*self.faults[layer], revision=self.number)
        known = self._trees.get((layer, separator, evaluate))
        if known is None:
            known = self._tree(layer, separator, evaluate)
            self._trees[layer, separator, evaluate] = known
        return known

    @cached_property
    def _trees(self) -> dict[tuple[str, str, bool], dict[str, object]]:
        return {}

    def _tree(self, layer: str, separator: str, evaluate: bool) -> dict[str, object]:
        leaves = {path: leaf.value for path, leaf in self.leaves(layer).items() if _usable(path)}
        try:
            tables = nest(leaves)
        except EtcdError as exc:
            raise Refused(f"{self.place.layer_name(layer)}: {exc}") from None
        for path in leaves if separator else ():
            if separator in path and separator in path.partition(".")[2]:
                warn_once(path, f"holds {separator!r} below the top; get() cannot reach it")
        return tree_of(tables, separator, evaluate=evaluate)


def _faults_in(table: LeafTable) -> Iterator[DecodeError]:
    """Yield why a layer is unusable. One path in two spellings is no reason: one of them counts."""
    passed_over = {
        leaf.name: table.found[leaf.path].name
        for leaf in (table.stored.values() if table.errors else ())
        if leaf.error is None and table.found.get(leaf.path, leaf) is not leaf
    }
    for name, error in table.errors.items():
        if name in passed_over:
            warn_once(name, f"is {passed_over[name]!r} in another case, and that one counts")
        else:
            yield error


def _usable(path: str) -> bool:
    if "merge" in path and any(map(is_merge_mark, path.split("."))):
        warn_once(path, "is a merge mark of Dynaconf's own; ignored")
        return False
    return True
