"""The last-known-good file: whole, private, and refused when it is not what it should be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from dynaconf_etcd import snapshot_file
from dynaconf_etcd.layers import Place, Revision
from etcd_core import InvalidConfig
from etcd_core.mirror import Entry, View
from etcd_core.snapshot import LeafDecoder

PLACE = Place("/p", "app")


def _revision(number: int, cause: str = "change", cluster_id: int = 7, **leaves: bytes) -> Revision:
    entries = {
        key: Entry(key, raw, 1, number, 0)
        for key, raw in ((PLACE.base + f"/{path}".encode(), raw) for path, raw in leaves.items())
    }
    view = View(number, entries)
    return Revision.decode(PLACE, view, LeafDecoder(), cluster_id=cluster_id, cause=cause)


def test_round_trip(tmp_path: Path) -> None:
    path = str(tmp_path / "snapshot")
    assert snapshot_file.load(path, PLACE, LeafDecoder()) is None
    saved = _revision(5, a=b"1", b=b"\xff\xfe: x" if False else b"'x'")
    snapshot_file.save(path, saved)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    loaded = snapshot_file.load(path, PLACE, LeafDecoder())
    assert loaded is not None
    assert dict(loaded.view.entries) == dict(saved.view.entries)
    assert (loaded.number, loaded.cluster_id, loaded.cause) == (5, 7, "snapshot")
    assert loaded.at == saved.at
    assert os.listdir(tmp_path) == ["snapshot"]


def test_a_folder_is_never_made(tmp_path: Path) -> None:
    snapshot_file.require_folder(str(tmp_path / "snapshot"))
    misspelt = tmp_path / "misspelt" / "snapshot"
    with pytest.raises(InvalidConfig, match="misspelt of the option snapshot"):
        snapshot_file.require_folder(str(misspelt))
    with pytest.raises(FileNotFoundError):
        snapshot_file.save(str(misspelt), _revision(5, a=b"1"))
    assert os.listdir(tmp_path) == []


def test_an_older_revision_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    path = str(tmp_path / "snapshot")
    snapshot_file.save(path, _revision(5, a=b"1"))
    snapshot_file.save(path, _revision(4, a=b"0"))
    assert snapshot_file.load(path, PLACE, LeafDecoder()).number == 5  # type: ignore[union-attr]
    snapshot_file.save(path, _revision(2, cause="reset", a=b"0"))
    assert snapshot_file.load(path, PLACE, LeafDecoder()).number == 2  # type: ignore[union-attr]
    snapshot_file.save(path, _revision(1, cluster_id=8, a=b"0"))
    assert snapshot_file.load(path, PLACE, LeafDecoder()).number == 1  # type: ignore[union-attr]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    snapshot_file.save(str(path), _revision(5, a=b"hunter2"))
    whole = path.read_text()
    for at in range(0, len(whole), 7):
        path.write_text(whole[:at])
        with pytest.raises(snapshot_file.Damaged):
            snapshot_file.load(str(path), PLACE, LeafDecoder())
    altered = json.loads(whole)
    altered["body"]["revision"] = 6
    path.write_text(json.dumps(altered))
    with pytest.raises(snapshot_file.Damaged, match="checksum"):
        snapshot_file.load(str(path), PLACE, LeafDecoder())
    path.write_bytes(os.urandom(100))
    with pytest.raises(snapshot_file.Damaged):
        snapshot_file.load(str(path), PLACE, LeafDecoder())


@pytest.mark.parametrize("place", [Place("/other", "app"), Place("/p", "other")])
def test_a_file_of_another_configuration_is_refused(tmp_path: Path, place: Place) -> None:
    path = str(tmp_path / "snapshot")
    snapshot_file.save(path, _revision(5, a=b"1"))
    with pytest.raises(snapshot_file.Damaged, match="another"):
        snapshot_file.load(path, place, LeafDecoder())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "snapshot")
    snapshot_file.save(path, _revision(5, a=b"1"))

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        snapshot_file.save(path, _revision(6, a=b"2"))
    assert snapshot_file.load(path, PLACE, LeafDecoder()).number == 5  # type: ignore[union-attr]
    assert os.listdir(tmp_path) == ["snapshot"]
