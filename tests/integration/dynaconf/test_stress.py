"""Eight readers, a thousand updates, not one bad read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_core import Client
from etcd_core.testing import EtcdServer

UPDATES = 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["plain", "django"])
def test_no_bad_read(etcd_server: EtcdServer, etcd_client: Client, kind: str) -> None:
    etcd_client.config_source("app").save({"pair": {"a": 0, "b": 0}, "top": 0})
    script = Path(__file__).with_name("stress_readers.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, etcd_server.endpoint, etcd_client.prefix, str(UPDATES)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    counts = outcome["counts"]
    print(outcome)
    faults = {name: counts[name] for name in ("torn", "wrong", "backwards", "raised")}
    assert faults == dict.fromkeys(faults, 0), done.stderr
    assert outcome["final"] == [UPDATES] * len(outcome["final"])
    assert counts["reads"] > 1000
    assert outcome["different"] > 3
