"""F5 for what is not a lock: a whole process stopped for longer than its TTL, then let go on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from etcd_core import Client, Descriptor
from etcd_core.testing import EtcdServer, eventually
from witness import revision

_PROGRAM = """
import json, sys
from etcd_core import Client, Descriptor

def tell(what, detail):
    # One write: several threads tell.
    sys.stdout.write(json.dumps([what, detail]) + "\\n")
    sys.stdout.flush()

client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])
me = client.register(Descriptor(name="paused", id="p-1", address="h:1"), ttl=1)
client.config_source("app").watch(lambda snapshot: tell("config", dict(snapshot)))
client.watch_service("others", lambda event: tell(str(event.type), event.info.id))
candidate = client.candidate("chief", "p-1", ttl=1)
candidate.wait(10)
tell("ready", candidate.is_leader)
for line in sys.stdin:
    tell("leads", candidate.is_leader)
client.close()
"""


@contextmanager
def program(server: EtcdServer, prefix: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, server.endpoint, prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.communicate()


class Told:
    """What the program printed, read by a thread of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._lines: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
        self._process = process
        self._thread = threading.Thread(target=self._read, name="told", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def until(self, what: str, detail: object) -> list[list[object]]:
        """Return everything up to the line that is waited for, that included."""
        seen: list[list[object]] = []
        deadline = time.monotonic() + 30
        while not seen or seen[-1] != [what, detail]:
            assert time.monotonic() < deadline, f"no {what} {detail!r} in {seen}"
            try:
                seen.append(self._lines.get(timeout=1))
            except queue.Empty:
                continue
        return seen


@pytest.mark.slow
def test_f05_a_paused_process_catches_up(
    etcd_server: EtcdServer, etcd_client: Client, prefix: str
) -> None:
    client = etcd_client
    source = client.config_source("app")
    source.save({"a": 1})
    stays, goes = (
        client.register(Descriptor(name="others", id=name, address="h:2"))
        for name in ("stays", "goes")
    )
    with program(etcd_server, client.prefix) as process:
        told = Told(process)
        told.until("ready", True)
        assert [info.id for info in client.discover("paused")] == ["p-1"]

        os.kill(process.pid, signal.SIGSTOP)
        rival = client.campaign("chief", "rival", ttl=30, timeout=30)
        eventually(lambda: client.discover("paused") == [], 20, message="expired")
        for number in (2, 3):
            source.save({"a": number})
        goes.deregister()
        etcd_server.ctl("compact", str(revision(etcd_server)))
        os.kill(process.pid, signal.SIGCONT)

        # Not a moment of leadership that another has.
        assert process.stdin is not None
        process.stdin.write("?\n")
        process.stdin.flush()
        lines = told.until("leads", False)
        assert ["leads", True] not in lines
        if ["removed", "goes"] not in lines:
            lines += told.until("removed", "goes")
        if ["config", {"a": 3}] not in lines:
            told.until("config", {"a": 3})
        assert ["removed", "stays"] not in lines
        eventually(
            lambda: [info.id for info in client.discover("paused")] == ["p-1"],
            20,
            message="registered again",
        )
        rival.resign()
    stays.deregister()
