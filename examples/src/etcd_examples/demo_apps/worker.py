"""A process of a fleet: calls a ``leader_only`` task again and again, or counts under a lock.

    python -m etcd_examples.demo_apps.worker task|count

Prints one JSON line per call, which is what the demo looks at.
"""

from __future__ import annotations

import json
import os
import sys
import time

from etcd_core import Client, current_term, leader_only

from . import COUNTER, ROUNDS

client = Client(endpoints=[os.environ["DEMO_ETCD"]], prefix="/demo")


@leader_only("nightly-report", client=client, ttl=5)
def nightly_report() -> int:
    """Return the fencing token, which a real task would send along with what it writes."""
    return current_term().token


def call_for_ever() -> None:
    while True:
        say(token=nightly_report())
        time.sleep(0.05)


def count() -> None:
    """Read, add one, write: each addition is lost unless the lock keeps the others out."""
    for _ in range(ROUNDS):
        with client.lock("counter", timeout=20) as lock:
            value, _ = client.raw.get(COUNTER)
            client.raw.put(COUNTER, str(int(value or b"0") + 1))
            say(token=lock.token)


def say(*, token: int | None) -> None:
    print(json.dumps({"token": token}), flush=True)


if __name__ == "__main__":
    {"task": call_for_ever, "count": count}[sys.argv[1]]()
