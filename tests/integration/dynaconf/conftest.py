"""Settings on a real etcd that end with their test, on whichever Dynaconf is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dynaconf import Dynaconf

import dynaconf_etcd
from etcd_core import Client
from etcd_core.testing import EtcdServer

MakeSettings = Callable[..., Dynaconf]
LOADERS = ["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.endswith("_FOR_DYNACONF") or name.startswith("DYNACONF_"):
            monkeypatch.delenv(name)


@pytest.fixture
def make_settings(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path
) -> Iterator[MakeSettings]:
    """Make settings on the test's prefix; they stop following at the end."""
    made: list[Dynaconf] = []

    def make(file: str = "", etcd: dict[str, object] | None = None, **options: object) -> Dynaconf:
        if file:
            (tmp_path / "settings.toml").write_text(file)
            options.setdefault("settings_files", ["settings.toml"])
        table = {
            "endpoints": [etcd_server.endpoint],
            "prefix": etcd_client.prefix,
            "name": "app",
            **(etcd or {}),
        }
        options.setdefault("loaders", LOADERS)
        options.setdefault("root_path", str(tmp_path))
        settings = options.pop("factory", Dynaconf)(etcd_for_dynaconf=table, **options)
        made.append(settings)
        return settings

    yield make
    for settings in made:
        if settings.configured:
            dynaconf_etcd.close(settings)
