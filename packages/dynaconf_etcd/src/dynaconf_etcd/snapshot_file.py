"""The last-known-good file: what to start with while etcd is away.

It holds the stored bytes of all layers, secrets included, so it is readable by its owner only. It
is replaced whole, so a crash leaves the old one or the new one. Functions for any thread.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tempfile
from types import MappingProxyType
from typing import Final

from etcd_core import InvalidConfig
from etcd_core.mirror import Entry, View
from etcd_core.snapshot import LeafDecoder

from .layers import Place, Refused, Revision

CAUSE: Final = "snapshot"
_FORMAT: Final = 1


class Damaged(Exception):
    """The file is not a snapshot of this configuration, or not a whole one."""


def require_folder(path: str) -> None:
    """Check that the file's folder is there: to make one would make a misspelt one too.

    Raises:
        InvalidConfig: It is not.
    """
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise InvalidConfig(f"dynaconf: the folder {folder} of the option snapshot does not exist")


def save(path: str, revision: Revision) -> None:
    """Write a revision, durably, unless the file holds it already or a newer one.

    Raises:
        OSError: It cannot be written; the old file stays.
    """
    if _is_known(path, revision):
        return
    body = _body(revision)
    text = json.dumps({"checksum": _checksum(body), "body": body}, separators=(",", ":"))
    folder = os.path.dirname(path)
    # mkstemp makes it readable by the owner only.
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def load(
    path: str, place: Place, decoder: LeafDecoder, *, read: frozenset[str] = frozenset()
) -> Revision | None:
    """Return the revision in the file, or None if there is no file.

    ``read`` names the layers that must be without a fault, beside the main one.

    Raises:
        Damaged: It is incomplete, altered, or of another configuration.
    """
    try:
        with open(path, encoding="ascii") as file:
            whole = json.load(file)
        body = whole["body"]
        if whole["checksum"] != _checksum(body):
            raise Damaged(f"the snapshot {path} is damaged: its checksum does not fit")
        if body["format"] != _FORMAT:
            raise Damaged(f"the snapshot {path} has the unknown format {body['format']!r}")
        if (body["prefix"], body["name"]) != (place.prefix, place.name):
            raise Damaged(f"the snapshot {path} is of another configuration")
        view = View(int(body["revision"]), MappingProxyType(_entries(body["entries"])))
        return Revision.decode(
            place,
            view,
            decoder,
            cluster_id=int(body["cluster_id"]),
            cause=CAUSE,
            at=float(body["time"]),
            read=read,
        )
    except FileNotFoundError:
        return None
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, TypeError, Refused) as exc:
        raise Damaged(f"the snapshot {path} cannot be read ({type(exc).__name__})") from None


def _is_known(path: str, revision: Revision) -> bool:
    try:
        known = load(path, revision.place, LeafDecoder())
    except Damaged:
        return False
    return (
        known is not None
        and known.cluster_id == revision.cluster_id
        # After a reset the numbers begin anew.
        and revision.cause not in ("reset", "initial")
        and known.number >= revision.number
    )


def _body(revision: Revision) -> dict[str, object]:
    return {
        "format": _FORMAT,
        "prefix": revision.place.prefix,
        "name": revision.place.name,
        "cluster_id": str(revision.cluster_id),
        "revision": revision.number,
        "time": revision.at,
        "entries": [
            [_text(entry.key), _text(entry.value), entry.create_revision, entry.mod_revision]
            for entry in revision.view.entries.values()
        ],
    }


def _entries(rows: list[tuple[str, str, int, int]]) -> dict[bytes, Entry]:
    entries: dict[bytes, Entry] = {}
    for key, value, created, modified in rows:
        raw = base64.b64decode(key, validate=True)
        entries[raw] = Entry(
            raw, base64.b64decode(value, validate=True), int(created), int(modified), 0
        )
    return entries


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _checksum(body: object) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _sync_folder(folder: str) -> None:
    """Make the new name durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
