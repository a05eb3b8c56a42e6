"""The type stubs of etcd3 agree with etcd3, and catch what they should in the code of a user."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is absent")

# What a stub has to say otherwise than the code does.
ALLOWED = """
# Read through __getattr__ from the message.
etcd3\\.events\\.Event\\..*
# An attribute of each instance hides the method of the same name.
etcd3\\.watch\\.Watch\\.iterator
# The type stubs of gRPC leave out the metaclass.
etcd3\\.client\\.EtcdTokenCallCredentials
"""

STUBTEST = """
import sys
from etcd_core.wire.etcd3_import import install
install()
from mypy.stubtest import main
sys.exit(main())
"""

USER = """
from __future__ import annotations

import etcd3
from etcd3.etcdrpc import rpc_pb2


def move(client: etcd3.Etcd3Client, key: str) -> bytes:
    value, metadata = client.get(key)
    if value is None or metadata is None:
        return b""
    done, answers = client.transaction(
        compare=[client.transactions.mod(key) == metadata.mod_revision],
        success=[client.transactions.put(key, value, lease=client.lease(5))],
        failure=[client.transactions.get(key)],
    )
    for answer in answers:
        if isinstance(answer, list):
            value = answer[0][0]
    events, cancel = client.watch_prefix(key, start_revision=metadata.mod_revision)
    for event in events:
        value = event.prev_value
        cancel()
    return value if done else client.kvstub.Range(rpc_pb2.RangeRequest(key=b"a")).kvs[0].value


def wrong(client: etcd3.Etcd3Client) -> None:
    client.put(1, "value")  # wrong: a key is text
    client.get_prefix("a", limit=3)  # wrong: etcd3 would ignore it
    rpc_pb2.RangeRequest(kee=b"a")  # wrong: no such field
"""


def mypy(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cwd / "cache")]
    return subprocess.run([*command, *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.timeout(240)
def test_stubs_agree_with_the_code(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    command = [sys.executable, "-c", STUBTEST, "etcd3", "--concise", "--allowlist", str(allowed)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_code_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    done = mypy("user.py", cwd=tmp_path)
    refused = [int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line]
    wrong = [number for number, line in enumerate(USER.splitlines(), 1) if "# wrong" in line]
    assert refused == wrong, done.stdout + done.stderr
