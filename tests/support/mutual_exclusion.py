"""J1: several contender processes on one lock, and what must hold of their records."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("contender.py")


@contextmanager
def contenders(
    count: int, endpoints: list[str], prefix: str, *, rounds: int, ttl: float, name: str = "job"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run ``count`` contender processes; whatever is left of them is killed on leaving."""
    command = [
        sys.executable,
        str(_SCRIPT),
        ",".join(endpoints),
        prefix,
        name,
        str(rounds),
        str(ttl),
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(processes: list[subprocess.Popen[str]], timeout: float) -> list[dict[str, Any]]:
    """Wait for the processes; return their records in token order, after checking J1."""
    records: list[dict[str, Any]] = []
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        lines = [json.loads(line) for line in out.splitlines()]
        assert process.returncode == 0, (lines[-3:], err[-2000:])
        records += [line for line in lines if "token" in line]
    return check(records)


def check(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Assert mutual exclusion over the records of all processes; return them by token."""
    by_token = sorted(records, key=lambda record: record["token"])
    tokens = [record["token"] for record in by_token]
    assert tokens == sorted(set(tokens)), "a token was used twice"
    values = [record["value"] for record in by_token if record["counted"]]
    assert values == sorted(set(values)), f"the counter did not follow the tokens: {values}"
    for earlier, later in itertools.pairwise(by_token):
        assert earlier["to"] <= later["from"], f"two owners at once: {earlier} and {later}"
    return by_token
