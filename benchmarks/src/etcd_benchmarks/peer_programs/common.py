"""What the peers' programs share: run beside any interpreter that has the peer, nothing else.

A program is run as ``program.py HOST PORT ITERATIONS`` and prints one JSON object: seconds per
operation, by operation.
"""

import itertools
import json
import statistics
import sys
import threading
import time

CONTENDERS = (2, 8, 64)
TURNS = 96


def arguments():
    return sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def timed(operation, times):
    operation()
    taken = []
    for _ in range(times):
        begins = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - begins)
    return statistics.median(taken)


def hand_over(contenders, take):
    """Return the median time from a release to the next owner; ``take(n)`` returns a release."""
    log = []
    turns = max(2, TURNS // contenders)
    barrier = threading.Barrier(contenders)

    def contend(number):
        barrier.wait(30)
        for _ in range(turns):
            release = take(number)
            log.append((time.perf_counter(), time.perf_counter()))
            release()

    threads = [
        threading.Thread(target=contend, args=(n,), daemon=True, name="etcd-bench-waiter")
        for n in range(contenders)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if len(log) < contenders * turns:
        return f"{len(log)} of {contenders * turns} turns in 20 s"
    return gaps(log)


def gaps(log):
    return statistics.median(b[0] - a[1] for a, b in itertools.pairwise(log))


def collect(operations):
    """Run each operation; a peer's failure is its result."""
    results = {}
    for name, operation in operations.items():
        try:
            results[name] = operation()
        except Exception as exc:
            results[name] = f"{type(exc).__name__}: {exc}"[:120]
    return results


def report(results):
    print(json.dumps(results), flush=True)
    # Some peers leave threads behind that never end.
    import os

    os._exit(0)
