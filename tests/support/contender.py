"""A process that contends for a lock and counts under it (J1). Run by the fault tests.

    python contender.py ENDPOINTS PREFIX NAME ROUNDS TTL

Each round: take the lock, raise a counter in etcd by one in a transaction that the lock's guard and
the counter's revision fence, hold the lock a little, release. One JSON line per round is printed:
token, counter value, when the lock was ours on the machine's monotonic clock, whether the guard
held. Fails loudly when the guard fails although the lock says that it is held.
"""

from __future__ import annotations

import json
import sys
import time

from etcd_core import Client, EtcdError


def main() -> None:
    endpoints, prefix, name, rounds, ttl = sys.argv[1:6]
    client = Client(endpoints=endpoints.split(","), prefix=prefix)
    counter = f"{prefix}/counter/{name}"
    done = 0
    while done < int(rounds):
        try:
            done += one_round(client, name, counter, float(ttl))
        except EtcdError as exc:
            print(json.dumps({"error": type(exc).__name__, "text": str(exc)}), flush=True)
            time.sleep(0.05)
    client.close()


def one_round(client: Client, name: str, counter: str, ttl: float) -> int:
    raw = client.raw
    lock = client.lock(name, ttl=ttl, timeout=30)
    begins = time.monotonic()
    try:
        value, meta = raw.get(counter)
        seen = int(value or b"0")
        mod = raw.transactions.mod(counter) == (meta.mod_revision if meta else 0)
        counted, _ = raw.transaction(
            compare=[lock.guard(), mod],
            success=[raw.transactions.put(counter, str(seen + 1))],
            failure=[],
        )
        ends = time.monotonic()
        sure = lock.held and lock.remaining > 0.05
    finally:
        lock.unlock()
    if not counted and sure:
        print(json.dumps({"violation": "guard failed while held", "token": lock.token}), flush=True)
        raise SystemExit(1)
    record = {
        "token": lock.token,
        "value": seen + 1,
        "from": begins,
        "to": ends,
        "counted": counted,
    }
    print(json.dumps(record), flush=True)
    return int(counted)


if __name__ == "__main__":
    main()
