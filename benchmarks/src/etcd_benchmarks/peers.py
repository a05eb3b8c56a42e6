"""The same work with other clients, each in a uv environment of its own. One at a time.

Their programs import nothing of ours, for protobuf 3.20 (which etcd3 0.12 needs) and ours do not
meet in one process. uv must be on PATH and able to install the peers.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TypedDict
from urllib.parse import urlsplit

from .core_rows import Bench
from .measure import Row, show_requests

_PROGRAMS = Path(__file__).with_name("peer_programs")
_PEERS: dict[str, tuple[str, ...]] = {
    "etcd3": ("etcd3==0.12.0", "protobuf==3.20.3"),
    "etcd3gw": ("etcd3gw",),
    "aetcd": ("aetcd", "protobuf==3.20.3"),
}
_OURS = "etcd_core"
_LIMIT = 120.0


class Measured(TypedDict, total=False):
    """What a program says of one operation."""

    seconds: float
    requests: dict[str, float]
    note: str


Results = dict[str, Measured]


def peers(bench: Bench) -> list[Row]:
    """Return a row for ours and one per peer, by operation; the peer's time beside ours.

    Rounds of all programs alternate; every round has lock names of its own.
    """
    interpreters = {_OURS: [sys.executable]}
    interpreters |= {name: _interpreter(packages) for name, packages in _PEERS.items()}
    rounds: list[dict[str, Results]] = []
    for number in range(1 if bench.effort.iterations < 100 else 3):
        rounds.append(
            {
                name: _results(interpreter, name, bench, number)
                for name, interpreter in interpreters.items()
            }
        )
    operations = list(rounds[0][_OURS])
    return [_row(rounds, operation, name) for operation in operations for name in interpreters]


def _interpreter(packages: tuple[str, ...]) -> list[str]:
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("bench --peers needs uv on PATH")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wanted = [part for package in packages for part in ("--with", package)]
    run = [uv, "run", "--no-project", "--isolated", "--quiet", "--python", version]
    return [*run, *wanted, "python"]


def _results(interpreter: list[str], name: str, bench: Bench, number: int) -> Results:
    parts = urlsplit(bench.endpoint)
    program = str(_PROGRAMS / f"with_{name}.py")
    command = [*interpreter, program, str(parts.hostname), str(parts.port)]
    try:
        done = subprocess.run(
            [*command, str(bench.effort.iterations), str(number)],
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"put": {"note": f"no end within {_LIMIT:g} s"}}
    if done.returncode or not done.stdout:
        return {"put": {"note": done.stderr.strip().splitlines()[-1] if done.stderr else "failed"}}
    results: Results = json.loads(done.stdout.splitlines()[-1])
    return results


def _row(rounds: list[dict[str, Results]], operation: str, name: str) -> Row:
    row = Row(f"{operation}: {name}", "" if name == _OURS else _OURS)
    measured = [each[name].get(operation, {}) for each in rounds]
    taken = [one["seconds"] for one in measured if "seconds" in one]
    row.ours = statistics.median(taken) if taken else None
    counted = measured[-1].get("requests", {})
    row.requests = show_requests(counted) if counted else ""
    notes = [one["note"] for one in measured if one.get("note")]
    row.notes += notes[-1:]
    if name != _OURS:
        _compare(row, rounds, operation, name)
    return row


def _compare(row: Row, rounds: list[dict[str, Results]], operation: str, name: str) -> None:
    pairs = [(each[_OURS][operation], each[name].get(operation, {})) for each in rounds]
    both = [(a["seconds"], b["seconds"]) for a, b in pairs if "seconds" in a and "seconds" in b]
    if both:
        row.floor = statistics.median(ours for ours, _ in both)
        row.ratio = statistics.median(theirs / ours for ours, theirs in both if ours)
