"""Eight readers, a thousand updates, not one bad read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from etcd_core import Client
from etcd_core.testing import EtcdServer

UPDATES = 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["plain", "django"])
def test_no_bad_read(etcd_server: EtcdServer, etcd_client: Client, kind: str) -> None:
    _read_all_the_time(etcd_server, etcd_client, kind, UPDATES)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["block", "blocks"])
def test_no_bad_read_beside_changes_of_environment(
    etcd_server: EtcdServer, etcd_client: Client, kind: str
) -> None:
    """Of one environment and one revision is each read, and at the end all is as it was."""
    for layer in ("app.development", "app.a", "app.b"):
        etcd_client.config_source(layer).save({"pair": {"a": 0, "b": 0}, "top": 0})
    outcome = _read_all_the_time(etcd_server, etcd_client, kind, UPDATES // 4)
    assert outcome["chosen"] == {}
    assert outcome["counts"]["switched"] > 3


def _read_all_the_time(
    server: EtcdServer, client: Client, kind: str, updates: int
) -> dict[str, Any]:
    client.config_source("app").save({"pair": {"a": 0, "b": 0}, "top": 0})
    script = Path(__file__).with_name("stress_readers.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, server.endpoint, client.prefix, str(updates)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    counts = outcome["counts"]
    print(outcome)
    faults = {name: counts[name] for name in ("torn", "wrong", "backwards", "raised")}
    assert faults == dict.fromkeys(faults, 0), done.stderr
    assert outcome["final"] == [updates] * len(outcome["final"])
    assert counts["reads"] > 1000
    assert outcome["different"] > 3
    return outcome
