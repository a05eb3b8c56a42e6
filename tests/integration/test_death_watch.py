"""Servers that tests started end with the test run, also if that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from etcd_core.testing import eventually

_SUPPORT = Path(__file__).parents[1] / "support"

_OWNER = """
import subprocess, sys, time
import death_watch
for _ in range(2):
    group = subprocess.Popen(["sleep", "600"], start_new_session=True)
    death_watch.add(group.pid)
    print(group.pid, flush=True)
death_watch.remove(group.pid)
print("ready", flush=True)
time.sleep(600)
"""


def test_groups_die_with_their_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(_SUPPORT)},
    )
    assert owner.stdout is not None
    with owner.stdout as lines:
        watched, forgotten = (psutil.Process(int(lines.readline())) for _ in range(2))
        try:
            assert lines.readline() == "ready\n"
            owner.kill()
            owner.wait(10)
            eventually(lambda: not _runs(watched), message="ended")
            assert _runs(forgotten)
        finally:
            forgotten.kill()


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
