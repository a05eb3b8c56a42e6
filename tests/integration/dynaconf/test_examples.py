"""The examples for Dynaconf, each run as its reader would."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dynaconf_etcd
from etcd_core import Client
from etcd_core.testing import EtcdServer
from etcd_examples.dynaconf_flask import create_app

EXPECTED = {
    "etcd_only": ["debug is True, the port is 8080", "the port is 9090 at revision"],
    "hybrid": [
        "server.host = from-the-file from file, hides nothing",
        "server.port = 9090 from etcd, hides file",
        "server.timeout = 5 from env, hides etcd, file",
        "deleted in etcd, server.port is 8080 again",
    ],
    "validators": ["not written: ", "refused: ", "still 80 and 'hello'"],
    "signals": ["changed: limit, log.level", "log.level: INFO -> DEBUG"],
    "snapshot": ["with etcd: hello", "without etcd: hello, stale: True"],
}

DJANGO = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "etcd_examples.dynaconf_django"
import django
django.setup()
import dynaconf_etcd
from django.conf import settings
from django.test import Client
print(Client().get("/").content.decode())
dynaconf_etcd.write(settings, {"greeting": "hello from etcd"})
print(Client().get("/").content.decode())
dynaconf_etcd.delete(settings, "greeting")
print(Client().get("/").content.decode())
dynaconf_etcd.close(settings)
"""


@pytest.fixture(autouse=True)
def _options(
    etcd_server: EtcdServer,
    etcd_client: Client,
    monkeypatch: pytest.MonkeyPatch,
    _clean_environment: None,
) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS_FOR_DYNACONF", etcd_server.endpoint)
    monkeypatch.setenv("ETCD_PREFIX_FOR_DYNACONF", etcd_client.prefix)
    # The examples change these two; so they are put back.
    monkeypatch.setenv("ETCD_DIAL_TIMEOUT_FOR_DYNACONF", "5.0")
    monkeypatch.setenv("EXAMPLE_SERVER__TIMEOUT", "5")


@pytest.mark.parametrize("name", EXPECTED)
def test_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    importlib.import_module(f"etcd_examples.dynaconf_{name}").main()
    shown = capsys.readouterr().out
    for line in EXPECTED[name]:
        assert line in shown


def test_flask() -> None:
    app = create_app()
    settings = app.dynaconf  # type: ignore[attr-defined]
    client = app.test_client()
    assert client.get("/").text == "hello from the code"
    dynaconf_etcd.write(settings, {"greeting": "hello from etcd"})
    assert client.get("/").text == "hello from etcd"
    dynaconf_etcd.delete(settings, "greeting")
    assert client.get("/").text == "hello from the code"
    dynaconf_etcd.close(settings)


@pytest.mark.timeout(120)
def test_django(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DJANGO],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=tmp_path,
    )
    shown = done.stdout.splitlines()
    expected = ["hello from the code", "hello from etcd", "hello from the code"]
    assert shown == expected, done.stderr
