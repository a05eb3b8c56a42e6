"""The same work with other clients, each in a uv environment of its own. One at a time.

Their programs import nothing of ours, for protobuf 3.20 (which etcd3 0.12 needs) and ours do not
meet in one process. uv must be on PATH and able to install the peers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from .core_rows import Bench
from .measure import Row

_PROGRAMS = Path(__file__).with_name("peer_programs")
_PEERS: dict[str, tuple[str, ...]] = {
    "etcd3": ("etcd3==0.12.0", "protobuf==3.20.3"),
    "etcd3gw": ("etcd3gw",),
    "aetcd": ("aetcd", "protobuf==3.20.3"),
}
_LIMIT = 120.0


def peers(bench: Bench) -> list[Row]:
    """Return a row per operation and peer: the peer's time beside ours."""
    ours = _results([sys.executable], "etcd_core", bench)
    rows = []
    for name, packages in _PEERS.items():
        theirs = _results(_interpreter(packages), name, bench)
        rows += [
            _row(name, operation, value, ours.get(operation)) for operation, value in theirs.items()
        ]
    return rows


def _interpreter(packages: tuple[str, ...]) -> list[str]:
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("bench --peers needs uv on PATH")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [part for package in packages for part in ("--with", package)]
    return [
        uv,
        "run",
        "--no-project",
        "--isolated",
        "--quiet",
        "--python",
        version,
        *wanted,
        "python",
    ]


def _results(interpreter: list[str], name: str, bench: Bench) -> dict[str, float | str]:
    parts = urlsplit(bench.endpoint)
    program = str(_PROGRAMS / f"with_{name}.py")
    command = [*interpreter, program, str(parts.hostname), str(parts.port)]
    try:
        done = subprocess.run(
            [*command, str(bench.effort.iterations)],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"all": f"no end within {_LIMIT:g} s"}
    if done.returncode:
        return {"all": done.stderr.strip().splitlines()[-1] if done.stderr else "failed"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _row(peer: str, operation: str, theirs: float | str, ours: float | str | None) -> Row:
    row = Row(f"{operation}: {peer}", "etcd_core")
    if isinstance(ours, float):
        row.floor = ours
    if isinstance(theirs, float):
        row.ours = theirs
    else:
        row.notes.append(f"did not work: {theirs}")
    if row.floor and row.ours:
        row.ratio = row.ours / row.floor
    return row
