"""The work, done with etcd3 0.12."""

import threading

import etcd3
from common import CONTENDERS, TTL, arguments, crowd, measure, report, timed

host, port, times, name = arguments()
client = etcd3.client(host=host, port=port)


def watch_latency():
    arrived = threading.Event()
    client.add_watch_callback("/peer/etcd3/w", lambda response: arrived.set())
    client.put("/peer/etcd3/w", "0")
    arrived.wait(5)

    def once():
        arrived.clear()
        client.put("/peer/etcd3/w", "1")
        assert arrived.wait(5)

    return timed(once, times)


def take(lock_name):
    lock = client.lock(lock_name, ttl=TTL)
    assert lock.acquire(timeout=60)
    return lock.release


report(
    measure(
        host,
        port,
        times,
        {
            "put": lambda: timed(lambda: client.put("/peer/etcd3/k", "v"), times),
            "get": lambda: timed(lambda: client.get("/peer/etcd3/k"), times),
            "lock cycle": lambda: timed(lambda: take(f"{name}-free")(), times),
            "watch latency": watch_latency,
        },
        {n: lambda n=n: crowd(n, lambda number: take(f"{name}-etcd3-{n}")) for n in CONTENDERS},
    )
)
