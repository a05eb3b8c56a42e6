"""One settings file, TOML, YAML or JSON, read and written whole: what ``pull`` writes into.

It may hold secrets: a new one is readable by its owner only, an old one keeps its owner and mode.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml
from dynaconf.loaders import write as write_file
from dynaconf.vendor import tomllib

from etcd_core import InvalidArgument

_PARSERS: Final[dict[str, Callable[[str], object]]] = {
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".json": json.loads,
}
_COMMENT: Final = re.compile(r"(?:^|\s)#", re.MULTILINE)


@dataclass(frozen=True)
class SettingsFile:
    """What a settings file holds now.

    Attributes:
        path: Where it is, or would be.
        tables: What it holds; nothing if there is no such file.
        exists: Whether there is one.
        commented: Whether it has comments, which do not survive being written anew.
    """

    path: str
    tables: Mapping[str, object]
    exists: bool
    commented: bool

    @classmethod
    def read(cls, path: str) -> SettingsFile:
        """Read a file.

        Raises:
            InvalidArgument: Its name tells no format that is known here, or it does not parse.
            OSError: It cannot be read, or its folder does not exist.
        """
        _parser(path)
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise FileNotFoundError(f"the folder of {path} does not exist")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls(path, {}, exists=False, commented=False)
        commented = not path.endswith(".json") and _COMMENT.search(text) is not None
        return cls(path, _parsed(path, text), exists=True, commented=commented)

    def with_layer(self, tables: Mapping[str, object], env: str | None) -> dict[str, object]:
        """Return the tables to write: all of them, or those of one environment among the others."""
        if env is None:
            return dict(tables)
        others = {name: item for name, item in self.tables.items() if name.lower() != env}
        return {**others, env: dict(tables)}


def text_of(path: str, tables: Mapping[str, object]) -> str:
    """Return the text of a file with these tables.

    Raises:
        InvalidArgument: The format has no form for a value.
    """
    suffix = ".yaml" if path.endswith(".yml") else Path(path).suffix
    with tempfile.TemporaryDirectory(prefix="dynaconf-etcd-") as folder:
        draft = Path(folder, f"settings{suffix}")
        try:
            write_file(str(draft), tables, merge=False)
        except (TypeError, ValueError) as exc:
            raise InvalidArgument(f"{path}: {type(exc).__name__}: {exc}; try .yaml") from None
        return draft.read_text(encoding="utf-8")


def leaves_in(path: str, text: str) -> dict[str, object]:
    """Return what a text of the file holds, by dotted path in lower case."""
    return dict(_leaves("", _parsed(path, text)))


def leaves_of(tables: Mapping[str, object]) -> dict[str, object]:
    """Return what tables hold, by dotted path in lower case."""
    return dict(_leaves("", tables))


def write(path: str, text: str) -> None:
    """Write a file whole, in place. Blocks for the disk.

    Raises:
        OSError: It cannot be written.
    """

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    with open(path, "w", encoding="utf-8", opener=private) as file:
        file.write(text)


def _parser(path: str) -> Callable[[str], object]:
    parser = _PARSERS.get(Path(path).suffix)
    if parser is None:
        raise InvalidArgument(f"{path}: the name must end in {', '.join(_PARSERS)}")
    return parser


def _parsed(path: str, text: str) -> dict[str, object]:
    try:
        found = _parser(path)(text) if text.strip() else {}
    except (ValueError, yaml.YAMLError) as exc:
        # A parser's text may quote the file.
        raise InvalidArgument(f"{path}: it does not parse ({type(exc).__name__})") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"{path}: it holds no table")
    return {str(name): item for name, item in found.items()}


def _leaves(above: str, tables: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, item in tables.items():
        path = f"{above}.{name}".lstrip(".").lower()
        if isinstance(item, Mapping) and item:
            yield from _leaves(path, item)
        else:
            yield path, item
