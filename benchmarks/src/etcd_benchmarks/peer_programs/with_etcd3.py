"""The work, done with etcd3 0.12."""

import threading

import etcd3
from common import CONTENDERS, arguments, collect, hand_over, report, timed

host, port, times = arguments()
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


def take(number):
    lock = client.lock("crowd-etcd3", ttl=30)
    assert lock.acquire(timeout=60)
    return lock.release


def cycle():
    take(0)()


report(
    collect(
        {
            "put": lambda: timed(lambda: client.put("/peer/etcd3/k", "v"), times),
            "get": lambda: timed(lambda: client.get("/peer/etcd3/k"), times),
            "lock cycle": lambda: timed(cycle, times),
            "watch latency": watch_latency,
            **{f"hand-over, {n}": lambda n=n: hand_over(n, take) for n in CONTENDERS},
        }
    )
)
