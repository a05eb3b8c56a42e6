"""How commands print: tables, JSON, and lines that cannot steer a terminal. One thread, no state.

What etcd holds was written by others, so control characters in it are shown as escapes.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import click

from ..errors import ConfigNotFound, EtcdError, InvalidArgument

T = TypeVar("T")
Row = dict[str, object]

_WIDEST = 100
"""Characters of a cell; ``--json`` shows all of them."""


def ask(question: Callable[[], T]) -> T:
    """Return the answer of etcd; an error is one line for the user."""
    try:
        with log_muted():
            return question()
    except (ConfigNotFound, InvalidArgument) as exc:
        raise click.ClickException(printable(str(exc))) from exc
    except EtcdError as exc:
        raise click.ClickException(printable(f"etcd: {exc}")) from exc


@contextmanager
def log_muted() -> Iterator[None]:
    """Keep our log out of what a command tells by itself; a level set by hand stays."""
    log = logging.getLogger("etcd_core")
    before = log.level
    if before == logging.NOTSET:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def say(line: str) -> None:
    """Print one line. Ends the command where there is nobody to read it, or no room for it."""
    try:
        click.echo(_encodable(printable(line)))
    except OSError as exc:
        _drop_output()
        if isinstance(exc, BrokenPipeError):
            raise click.exceptions.Exit(1) from None
        raise click.ClickException(f"cannot write the output: {exc.strerror or exc}") from exc


def show(rows: Sequence[Row], as_json: bool, where: str) -> None:
    """Print what was found, or that there is nothing under ``where``."""
    if as_json:
        say(json.dumps(rows, default=str))
    elif not rows:
        say(f"nothing under {where}")
    else:
        for line in _table(rows):
            say(line)


def printable(text: str) -> str:
    """Return ``text`` with everything escaped that is not to be seen, or steers a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def reader_is_gone() -> bool:
    """Tell whether the output is a pipe that nobody reads any more. Writes nothing."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLERR)
        return any(flags & select.POLLERR for _, flags in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False  # it is no file


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _drop_output() -> None:
    """Have the rest go nowhere: the interpreter would fail on it again when it ends."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)


def _table(rows: Sequence[Row]) -> Iterable[str]:
    header = list(rows[0])
    lines = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _cell(value: object) -> str:
    text = printable(_spelled(value))
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)
