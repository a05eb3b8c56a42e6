"""Configuration as leaves: the YAML text of one leaf, and dotted paths to and from nested tables.

Go services read and write the same keys, so a leaf means here what Go's yaml.v2 says it means,
and what is written reads the same in yaml.v2, yaml.v3 and PyYAML. Pure functions for any thread;
inputs are never mutated, and results share no list or table with them. PyYAML is imported here.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, ItemsView, Iterator, Mapping
from datetime import date, time
from typing import Final, NamedTuple, TypeAlias, TypeVar

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from .errors import DecodeError, InvalidArgument

Value: TypeAlias = bool | int | float | str | bytes | list["Value"] | dict[str, "Value"] | None
"""What one leaf can hold. Dates are text: Go's untyped reading has no dates either."""

MAX_DEPTH: Final = 64
"""Deepest nesting of a value, and most segments of a path. Keeps all recursion here bounded."""

MAX_ALIASED_NODES: Final = 10_000
"""Most nodes that the aliases of one leaf may expand to: a small text must not fill the memory."""

_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1

_T = TypeVar("_T")


# -- paths -------------------------------------------------------------------------------------


def leaf_path(key: str) -> str:
    """Return the path under which ``key`` is stored: the same text in lower case.

    Letters are lowered one by one, as Go does, so that both languages arrive at one etcd key (they
    differ from ``str.lower`` in the final sigma and the dotted capital I).

    Args:
        key: A dotted path. A slash may stand inside a segment, not at either end of one, because
            the parts of an etcd key lose the slashes at their ends.

    Raises:
        InvalidArgument: It is not a str, has an empty segment or more than ``MAX_DEPTH`` of them,
            a slash at the end of a segment, a NUL, or is not valid Unicode.

    Example:
        >>> leaf_path("Server.Port")
        'server.port'
    """
    if not isinstance(key, str):
        raise InvalidArgument(f"config: the key {key!r} must be a str, not {type(key).__name__}")
    path = _lower(str.__str__(key))
    segments = path.split(".")
    if len(segments) > MAX_DEPTH:
        raise InvalidArgument(f"config: a path of {len(segments)} segments; {MAX_DEPTH} at most")
    for segment in segments:
        if reason := _segment_fault(segment):
            raise InvalidArgument(f"config: the path {key!r} {reason}")
    return path


def _lower(text: str) -> str:
    if text.isascii():
        return text.lower()
    return "".join(char.lower()[0] for char in text)


def _segment_fault(segment: str) -> str:
    if not segment:
        return "has an empty segment"
    if "/" in segment:
        # The key of a leaf would read as one of another configuration: "app" and "app/eu".
        return "has a segment with '/' in it"
    if "\0" in segment:
        return "holds a NUL character"
    return "is not valid Unicode" if _has_surrogate(segment) else ""


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)


# -- writing one leaf --------------------------------------------------------------------------

# Wider rules exist, but each reader has its own surprises with digits, signs and dots in front.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*")
_NOT_STRINGS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_TO_ESCAPE = re.compile(r"[^ !#-\[\]-~]")
_SHORT_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
# A parser gives up looking for the colon 1024 characters after the start of a key.
_LONG_KEY: Final = 128


def encode_leaf(value: object, path: str) -> bytes:
    """Return the YAML of one leaf: ASCII, one line, flow style, keys in their order.

    Tuples become lists. Subclasses of the types of :data:`Value` are written as the plain value
    they equal.

    Args:
        value: A :data:`Value`, or a tuple or mapping in its place.
        path: The leaf's path, for the error's text.

    Raises:
        InvalidArgument: The value would come back as another: a type outside :data:`Value` (a date
            too: yaml.v2 reads text where yaml.v3 and PyYAML read a date), a key that is not a str,
            an integer beyond 64 bits, invalid Unicode, nesting deeper than ``MAX_DEPTH`` (a value
            that contains itself included).

    Example:
        >>> encode_leaf({"on": [1, 2.0, "x y"]}, "server")
        b'{"on": [1, 2.0, "x y"]}'
    """
    return _text_of(_plain(value, path, 0)).encode("ascii")


def _plain(value: object, where: str, depth: int) -> Value:
    """Copy ``value`` into the types of :data:`Value`, or refuse it."""
    if depth > MAX_DEPTH:
        # The path is as long as the nesting is deep: name only its head.
        raise _unwritable(where[:80], f"it nests deeper than {MAX_DEPTH}, or contains itself")
    if isinstance(value, Mapping):
        return {
            _plain_key(key, where): _plain(item, f"{where}.{key}", depth + 1)
            for key, item in _items(value)
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    return _plain_scalar(value, where)


def _plain_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise _unwritable(where, f"a key is a {type(key).__name__}, not a str")
    return _plain_text(key, where)


def _plain_scalar(value: object, where: str) -> Value:
    if value is None or isinstance(value, (bool, bytes)):
        return value
    if isinstance(value, str):
        return _plain_text(value, where)
    if isinstance(value, int):
        return _plain_int(int(value), where)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (date, time)):
        kind = type(value).__name__
        raise _unwritable(where, f"a {kind} would come back as text; store its isoformat()")
    raise _unwritable(where, f"a {type(value).__name__} has no form in YAML that reads back")


def _plain_text(text: str, where: str) -> str:
    if _has_surrogate(text):
        raise _unwritable(where, "a string is not valid Unicode")
    return str.__str__(text)


def _plain_int(number: int, where: str) -> int:
    if not _INT64_MIN <= number <= _UINT64_MAX:
        # Go would read a float: the last digits would be lost without a word.
        raise _unwritable(where, "an integer does not fit in 64 bits; store it as a string")
    return number


def _unwritable(where: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"config: cannot store {where!r}: {reason}")


def _text_of(value: Value) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return "{" + ", ".join(_entry(key, item) for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text_of, value)) + "]"
    return _scalar_text(value)


def _entry(key: str, item: Value) -> str:
    name = _quoted(key)
    if len(name) > _LONG_KEY:
        return f"? {name} : {_text_of(item)}"
    return f"{name}: {_text_of(item)}"


def _scalar_text(value: bool | int | float | bytes | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, bytes):
        return f'!!binary "{base64.b64encode(value).decode("ascii")}"'
    return str(value)


def _float_text(number: float) -> str:
    if math.isnan(number):
        return ".nan"
    if math.isinf(number):
        return ".inf" if number > 0 else "-.inf"
    text = repr(number)
    # PyYAML takes "1e+16" for a string; the point makes it a float for every reader.
    return text if "." in text else text.replace("e", ".0e")


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_STRINGS:
        return text
    return f'"{_TO_ESCAPE.sub(_escape, text)}"'


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if short := _SHORT_ESCAPES.get(char):
        return short
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02X}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


# -- reading one leaf --------------------------------------------------------------------------

_LOADER: Callable[[bytes], yaml.SafeLoader | yaml.CSafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)
_TAG: Final = "tag:yaml.org,2002:"

# Most leaves are one word, number or quoted string; no parser is needed for those. The forms are
# narrow on purpose: whatever they do not cover takes the long way to the same result.
_SIMPLE = re.compile(
    rb"(?P<word>[A-Za-z_/][A-Za-z0-9_./@+-]*(?:[ :][A-Za-z0-9_./@+-]+)*)"
    rb"|(?P<integer>-?(?:0|[1-9][0-9]{0,17}))"
    rb'|(?P<quoted>"[ !#-\[\]-~]*")'
    rb"|(?P<decimal>-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17})"
)


def _cased(*words: str) -> Iterator[str]:
    for word in words:
        yield from {word, word.capitalize(), word.upper()}


_WORDS: Final[dict[str, Value]] = {
    "": None,
    "~": None,
    **dict.fromkeys(_cased("null"), None),
    **dict.fromkeys(_cased("y", "yes", "on", "true"), True),
    **dict.fromkeys(_cased("n", "no", "off", "false"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **{f"{sign}{inf}": math.inf for sign in ("", "+") for inf in (".inf", ".Inf", ".INF")},
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)"
    r"|(?P<dec>0|[1-9][0-9]*))"
)
_BASES: Final = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}
# yaml.v2 hands the digits after "0b" to a parser that takes a sign of its own.
_SIGNED_BINARY = re.compile(r"0b(?P<sign>[-+])(?P<bin>[01]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_DATED = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ][0-9]|$)")
_POINT_FLOAT = re.compile(r"\.[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+(?:_[0-9]+)*)?")


def decode_leaf(raw: bytes, path: str) -> Value:
    """Return the value of one leaf, as Go's yaml.v2 reads it into an untyped variable.

    So ``y``, ``yes`` and ``on`` are true, ``1e3`` is a float, ``1:30`` and ``2024-01-02`` are
    strings, unknown tags are ignored, and of several documents the first counts. Two deviations:
    mapping keys are their text (``{8080: a}`` has the key ``"8080"``), because settings and paths
    have names, not numbers; and ``!!binary`` is bytes. No Python object is ever constructed.

    Args:
        raw: The stored bytes.
        path: The leaf's path or etcd key, for the error.

    Raises:
        DecodeError: It is not such a value, nests deeper than ``MAX_DEPTH``, or its aliases expand
            to more than ``MAX_ALIASED_NODES``. The message tells where, never what is there.

    Example:
        >>> decode_leaf(b"1e+06", "limit"), decode_leaf(b"{retries: 3}", "http")
        (1000000.0, {'retries': 3})
    """
    if match := _SIMPLE.fullmatch(raw):
        text = raw.decode("ascii")
        kind = match.lastgroup
        if kind == "word":
            return _WORDS.get(text, text)
        if kind == "integer":
            return int(text)
        return text[1:-1] if kind == "quoted" else float(text)
    return _decode_document(raw, path)


class _Unreadable(Exception):
    """A leaf outside what :func:`decode_leaf` accepts; its text never quotes the leaf."""


def _decode_document(raw: bytes, path: str) -> Value:
    try:
        return _Document(raw).value()
    except _Unreadable as exc:
        reason = str(exc)
    except yaml.MarkedYAMLError as exc:
        # PyYAML's own text may quote the value, which may be a secret.
        mark = exc.problem_mark
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = f"not valid YAML{at}"
    except Exception as exc:  # parsers raise more than YAMLError on bad input
        reason = f"not valid YAML ({type(exc).__name__})"
    # Raised outside the handler: as a context, the parser's error would carry the text along.
    raise DecodeError(f"config: the leaf {path!r} does not decode: {reason}", key=path)


class _Anchor(NamedTuple):
    value: Value
    nodes: int
    key: str | None


class _Document:
    """Builds the value of one YAML document from parse events.

    From events and not by PyYAML's composer, which recurses in C without a limit.
    """

    def __init__(self, raw: bytes) -> None:
        self._loader = _LOADER(raw)
        self._anchors: dict[str, _Anchor | None] = {}
        self._nodes = 0
        self._aliased = 0

    def value(self) -> Value:
        try:
            event = self._next()
            while not isinstance(event, (DocumentStartEvent, StreamEndEvent)):
                event = self._next()
            if isinstance(event, StreamEndEvent):
                return None
            root = self._node(self._next(), 0)
            # Only a look past the end tells "a\nb:" from the text "a b"; what follows is not ours.
            self._next()
            return root.value
        finally:
            self._loader.dispose()

    def _next(self) -> Event:
        event: Event | None = self._loader.get_event()
        if event is None:
            raise _Unreadable("it ends too early")
        return event

    def _node(self, event: Event, depth: int) -> _Anchor:
        if isinstance(event, AliasEvent):
            return self._alias(event, depth)
        if not isinstance(event, NodeEvent):
            raise _Unreadable("a value is missing")
        if depth > MAX_DEPTH:
            raise _Unreadable(f"it nests deeper than {MAX_DEPTH}")
        before = self._nodes
        self._nodes += 1
        if isinstance(event, ScalarEvent):
            node = _Anchor(_scalar(event), 1, event.value)
        else:
            if event.anchor:
                self._anchors[event.anchor] = None
            is_list = isinstance(event, SequenceStartEvent)
            value = self._sequence(depth) if is_list else self._mapping(depth)
            node = _Anchor(value, self._nodes - before, None)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent, depth: int) -> _Anchor:
        node = self._anchors.get(event.anchor or "")
        if node is None:
            raise _Unreadable("an alias has no anchor before it, or is inside its own anchor")
        if depth + _height(node.value) > MAX_DEPTH:
            raise _Unreadable(f"it nests deeper than {MAX_DEPTH}")
        self._nodes += node.nodes
        self._aliased += node.nodes
        if self._aliased > MAX_ALIASED_NODES:
            raise _Unreadable(f"its aliases expand to more than {MAX_ALIASED_NODES} values")
        return node._replace(value=_copied(node.value))

    def _sequence(self, depth: int) -> list[Value]:
        items: list[Value] = []
        while not isinstance(event := self._next(), SequenceEndEvent):
            items.append(self._node(event, depth + 1).value)
        return items

    def _mapping(self, depth: int) -> dict[str, Value]:
        table: dict[str, Value] = {}
        while not isinstance(event := self._next(), MappingEndEvent):
            merge = _is_merge(event)
            key = self._node(event, depth + 1).key
            value = self._node(self._next(), depth + 1).value
            if merge:
                _merge(table, value)
            elif key is None:
                raise _Unreadable("a mapping key is a list or a mapping")
            else:
                table[key] = value
        return table


def _height(value: Value) -> int:
    if isinstance(value, dict):
        return _height(list(value.values()))
    return 1 + max(map(_height, value), default=-1) if isinstance(value, list) else 0


def _is_merge(event: Event) -> bool:
    if not isinstance(event, ScalarEvent) or event.value != "<<":
        return False
    return event.tag == f"{_TAG}merge" or (event.tag is None and not event.style)


def _merge(table: dict[str, Value], value: Value) -> None:
    # As yaml.v2: a merge overrides what stands before it; of a list, the first mapping wins.
    for source in reversed(value if isinstance(value, list) else [value]):
        if not isinstance(source, dict):
            raise _Unreadable("a merge key needs a mapping or a list of mappings")
        table.update(source)


def _scalar(event: ScalarEvent) -> Value:
    text: str = event.value
    tag: str | None = event.tag
    if tag in (None, "!"):
        return text if event.style else _resolve(text)
    kind = tag.removeprefix(_TAG)
    if kind == "binary":
        return _binary(text)
    if kind == "timestamp" and not _DATED.match(text):
        raise _Unreadable("a value is not the !!timestamp that it is tagged as")
    if kind in _FITS and kind != tag:
        return _tagged(kind, _resolve(text))
    return text


_FITS: Final[dict[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "null": (type(None),),
}


def _tagged(kind: str, value: Value) -> Value:
    fits = isinstance(value, _FITS[kind]) and isinstance(value, bool) == (kind == "bool")
    if not fits:
        raise _Unreadable(f"a value is not the !!{kind} that it is tagged as")
    return float(value) if kind == "float" and isinstance(value, int) else value


def _binary(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise _Unreadable("a !!binary value is not base64") from None


def _resolve(text: str) -> Value:
    """Return what an unquoted, untagged scalar means."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] == ".":
        return _finite(text.replace("_", ""), text) if _POINT_FLOAT.fullmatch(text) else text
    if text[0] not in "+-0123456789":
        return text
    digits = text.replace("_", "")
    number = _integer(digits)
    if number is not None:
        return number
    return _finite(digits, text) if _FLOAT.fullmatch(digits) else text


def _finite(digits: str, text: str) -> float | str:
    # Go's parser refuses a number out of range, and yaml.v2 then keeps the text.
    number = float(digits)
    return text if math.isinf(number) else number


def _integer(digits: str) -> int | None:
    match = _INTEGER.fullmatch(digits) or _SIGNED_BINARY.fullmatch(digits)
    if match is None or match.lastgroup is None:
        return None
    magnitude = match[match.lastgroup].lstrip("0") or "0"
    if len(magnitude) > 64:
        return None
    number = int(match["sign"] + magnitude, _BASES[match.lastgroup])
    highest = _INT64_MAX if match["sign"] else _UINT64_MAX
    return number if _INT64_MIN <= number <= highest else None


# -- tables ------------------------------------------------------------------------------------


def flatten(config: Mapping[str, object]) -> dict[str, Value]:
    """Return the leaves of a nested or dotted configuration, by path.

    - A key of ``config`` itself is a path: lowered, and split at its dots.
    - A table under it is spread into the leaves of its values, if each of its own keys can be a
      path segment as it stands: lower case, no dot, no slash, no NUL, not empty.
    - Otherwise that table is one leaf, a YAML map, which keeps its keys as they are. So Django's
      ``DATABASES`` has a leaf ``databases.default`` with ``ENGINE`` and ``NAME`` in it, and
      ``LOGGING`` a leaf ``logging.loggers`` that holds ``django.request``.
    - Lists are leaves whatever is in them, and so are None, an empty list and an empty table.
    - A map leaf and leaves under it may stand together; :func:`nest` merges them.

    Returns:
        Leaves in the order of ``config``, each as :func:`decode_leaf` would give it back:
        ``nest(flatten(config))`` is a nested ``config`` again, its top-level names lowered.

    Raises:
        InvalidArgument: A path is refused by :func:`leaf_path`, a value by :func:`encode_leaf`,
            two keys are one path (``Port`` and ``port``), or one path holds a value and another
            goes on below it.

    Example:
        >>> flatten({"Server": {"port": 1}, "DATABASES": {"default": {"NAME": "x"}}})
        {'server.port': 1, 'databases.default': {'NAME': 'x'}}
    """
    leaves: dict[str, Value] = {}
    given_as: dict[str, str] = {}
    for key, item in config.items():
        path = leaf_path(key)
        for leaf, value in _spread(path, _plain(item, path, 0)):
            source = f"{key}{leaf[len(path) :]}"
            if leaf in leaves:
                raise InvalidArgument(
                    f"config: {given_as[leaf]!r} and {source!r} are both the leaf {leaf!r}"
                )
            leaves[leaf], given_as[leaf] = value, source
    _tree(leaves)
    return leaves


def _spread(path: str, value: Value) -> Iterator[tuple[str, Value]]:
    if isinstance(value, dict) and value and _is_spreadable(value):
        for segment, item in value.items():
            yield from _spread(f"{path}.{segment}", item)
    else:
        yield path, value


def _is_spreadable(table: dict[str, Value]) -> bool:
    return all("." not in key and _lower(key) == key and not _segment_fault(key) for key in table)


def nest(leaves: Mapping[str, Value]) -> dict[str, object]:
    """Return the tables that the leaves make up: the inverse of :func:`flatten`.

    Where a map leaf and leaves below it stand together, the deeper leaf wins, as :func:`overlay`
    has it: ``port`` below replaces a ``PORT`` in the map.

    Raises:
        InvalidArgument: One path holds a value that is no table and another goes on below it, or a
            path has more than ``MAX_DEPTH`` segments. Names both.

    Example:
        >>> nest({"a": {"B": 1}, "a.b": 2, "a.c": 3})
        {'a': {'B': 2, 'c': 3}}
    """
    tree = _tree(leaves)
    maps = [path for path, value in leaves.items() if isinstance(value, dict)]
    # Deepest first: what stands under a map leaf is whole before it is laid over that leaf.
    for path in sorted(maps, key=lambda path: path.count("."), reverse=True):
        *parents, name = path.split(".")
        table = tree
        for segment in parents:
            table = table[segment]  # type: ignore[assignment]
        table[name] = overlay(leaves[path], table[name])  # type: ignore[arg-type]
    return tree


def overlay(base: Mapping[str, object], top: Mapping[str, object]) -> dict[str, object]:
    """Return ``base`` with ``top`` over it: tables merge, everything else replaces.

    Lists replace too. A key of ``top`` that differs from one of ``base`` only in case is the same
    key, and keeps the case of ``base``. Tables and lists in the result are copies of plain type;
    the items of ``dict`` subclasses are read raw, so nothing lazy in them is evaluated.

    Example:
        >>> overlay({"Port": 1, "tls": {"ca": "x"}}, {"port": 2, "tls": {"key": "y"}})
        {'Port': 2, 'tls': {'ca': 'x', 'key': 'y'}}
    """
    base_items, top_items = dict(_items(base)), dict(_items(top))
    folded = _folded(base_items, top_items)
    laid: dict[str, object] = {}
    for key, item in top_items.items():
        name = key if key in base_items else folded.get(_lower(key), key)
        below = base_items.get(name)
        both = isinstance(below, Mapping) and isinstance(item, Mapping)
        laid[name] = overlay(below, item) if both else _copied(item)  # type: ignore[arg-type]
    result = {
        key: laid.pop(key) if key in laid else _copied(item) for key, item in base_items.items()
    }
    result.update(laid)
    return result


def _tree(leaves: Mapping[str, Value]) -> dict[str, object]:
    """Nest the leaves, with an empty table in the place of each map leaf that has none under it."""
    tree: dict[str, object] = {}
    # Leaves of one table mostly come together, and no table is ever replaced by another.
    tables = {"": tree}
    for path, value in leaves.items():
        parent, _, name = path.rpartition(".")
        table = tables.get(parent)
        if table is None:
            table = tables[parent] = _table_at(tree, parent, path)
        if isinstance(value, dict):
            table.setdefault(name, {})
        elif name in table:
            raise _conflict(path, next(other for other in leaves if other.startswith(f"{path}.")))
        else:
            table[name] = _copied(value) if isinstance(value, list) else value
    return tree


def _table_at(tree: dict[str, object], parent: str, path: str) -> dict[str, object]:
    """Return the table that holds ``path``, made where missing."""
    segments = parent.split(".")
    if len(segments) >= MAX_DEPTH:
        raise InvalidArgument(
            f"config: a path of {len(segments) + 1} segments; {MAX_DEPTH} at most"
        )
    table = tree
    for i, segment in enumerate(segments):
        below = table.setdefault(segment, {})
        if not isinstance(below, dict):
            raise _conflict(".".join(segments[: i + 1]), path)
        table = below
    return table


def _conflict(path: str, deeper: str) -> InvalidArgument:
    return InvalidArgument(f"config: {path!r} holds a value, so {deeper!r} cannot lie below it")


def _folded(base: dict[str, object], top: dict[str, object]) -> dict[str, str]:
    """Return by lower case the keys of ``base`` that ``top`` may mean by another spelling."""
    if all(key in base for key in top):
        return {}
    # Reversed, so that of two spellings in ``base`` the first counts.
    return {_lower(key): key for key in reversed(base) if isinstance(key, str) and key not in top}


def _items(table: Mapping[str, _T]) -> ItemsView[str, _T]:
    # Dynaconf's tables evaluate lazy values in their own items().
    return dict.items(table) if isinstance(table, dict) else table.items()


def _copied(value: _T) -> _T:
    """Copy tables and lists, at every depth, into plain ones; everything else is shared."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in _items(value)}  # type: ignore[return-value]
    if isinstance(value, list):
        return [_copied(item) for item in list.__iter__(value)]  # type: ignore[return-value]
    return value
