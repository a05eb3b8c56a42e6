"""What the peers' programs share: run beside any interpreter that has the peer, nothing else.

A program is run as ``program.py HOST PORT ITERATIONS ROUND`` and prints one JSON object, by
operation: seconds, and what etcd counts as received for one such operation, by method.
"""

import itertools
import json
import re
import statistics
import sys
import threading
import time
import urllib.request

CONTENDERS = (2, 8, 64)
TURNS = 128
TTL = 30
PATIENCE = 8.0
_RECEIVED = re.compile(
    r'grpc_server_msg_received_total{grpc_method="(\w+)",grpc_service="etcdserverpb\.\w+",'
    r'grpc_type="\w+"} (\S+)'
)


def arguments():
    """Return host, port, iterations and a name that no other round uses."""
    host, port, times, number = sys.argv[1:5]
    return host, int(port), int(times), f"round-{number}"


def received(host, port):
    """Return the messages that etcd has received so far, by method: no client can hide any."""
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
        found = _RECEIVED.findall(answer.read().decode())
    return {method: float(count) for method, count in found}


def spent(before, after, times):
    """Return the messages for one of ``times`` operations."""
    grown = {method: count - before.get(method, 0.0) for method, count in after.items()}
    each = {method: round(count / times, 2) for method, count in grown.items()}
    return {method: count for method, count in each.items() if count}


def timed(operation, times):
    operation()
    taken = []
    for _ in range(times):
        begins = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - begins)
    return statistics.median(taken)


class Crowd:
    """The turns that contenders had at one lock."""

    def __init__(self, contenders):
        self.turns = max(2, TURNS // contenders)
        self.all = self.turns * contenders
        self.began = time.perf_counter()
        self.log = []

    def note(self, number, asked, taken, released):
        """Note a turn: when it was asked for, when it came, when its release began."""
        self.log.append((taken, released, number, taken - asked))

    @property
    def complete(self):
        return len(self.log) == self.all

    def figures(self):
        """Return the seconds of a turn and of a hand-over, and who was handed to."""
        log = sorted(self.log)
        if len(log) < 2:
            return {"note": f"{len(log)} of {self.all} turns in {PATIENCE:g} s"}
        # Who takes the lock back before another could is no hand-over.
        pairs = [(a, b) for a, b in itertools.pairwise(log) if a[2] != b[2]]
        figures = {"turn": (log[-1][1] - self.began if self.complete else PATIENCE) / len(log)}
        notes = [f"{len(pairs) / (len(log) - 1):.0%} of the turns go to another"]
        if pairs:
            gaps = sorted(b[0] - a[1] for a, b in pairs)
            figures["hand-over"] = statistics.median(gaps)
            notes.append(f"p99 of those {gaps[int(0.99 * (len(gaps) - 1))] * 1e3:.1f} ms")
        notes.append(f"longest wait {max(entry[3] for entry in log) * 1e3:.0f} ms")
        if not self.complete:
            notes.insert(0, f"{len(log)} of {self.all} turns in {PATIENCE:g} s")
        figures["note"] = "; ".join(notes)
        return figures


def crowd(contenders, take):
    """Let threads contend; ``take(number)`` waits for the lock and returns what releases it."""
    found = Crowd(contenders)
    barrier = threading.Barrier(contenders)

    def contend(number):
        barrier.wait(30)
        for _ in range(found.turns):
            asked = time.perf_counter()
            release = take(number)
            taken = time.perf_counter()
            found.note(number, asked, taken, time.perf_counter())
            release()

    threads = [
        threading.Thread(target=contend, args=(n,), daemon=True, name="etcd-bench-waiter")
        for n in range(contenders)
    ]
    found.began = time.perf_counter()
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return found


def measure(host, port, times, operations, crowds):
    """Run each operation, then each crowd; a peer's failure is its result."""
    results = {}
    for name, operation in operations.items():
        try:
            before = received(host, port)
            taken = operation()
            results[name] = {
                "seconds": taken,
                "requests": spent(before, received(host, port), times + 1),
            }
        except Exception as exc:
            results[name] = {"note": f"{type(exc).__name__}: {exc}"[:120]}
    for contenders, run in crowds.items():
        before = received(host, port)
        found = run()
        requests = spent(before, received(host, port), len(found.log) or 1)
        record(results, contenders, found.figures(), requests)
    return results


def record(results, contenders, figures, requests):
    """File the figures of a crowd as two operations."""
    note = figures.get("note", "")
    for name in ("turn", "hand-over"):
        entry = {"note": note if name == "hand-over" else "", "requests": {}}
        if name in figures:
            entry["seconds"] = figures[name]
        if name == "turn":
            entry["requests"] = requests
        results[f"{name}, {contenders} contenders"] = entry


def report(results):
    print(json.dumps(results), flush=True)
    # Some peers leave threads behind that never end.
    import os

    os._exit(0)
