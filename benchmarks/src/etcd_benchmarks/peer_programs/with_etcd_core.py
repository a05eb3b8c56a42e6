"""The work, done with etcd_core."""

import threading

from common import CONTENDERS, TTL, arguments, crowd, measure, report, timed

from etcd_core import Client

host, port, times, name = arguments()
client = Client(endpoints=[f"{host}:{port}"], prefix="/peer/etcd_core")
raw = client.raw


def watch_latency():
    arrived = threading.Event()
    raw.add_watch_callback("/peer/etcd_core/w", lambda response: arrived.set())
    raw.put("/peer/etcd_core/w", "0")
    arrived.wait(5)

    def once():
        arrived.clear()
        raw.put("/peer/etcd_core/w", "1")
        assert arrived.wait(5)

    return timed(once, times)


def contend(contenders):
    return crowd(
        contenders, lambda number: client.lock(f"{name}/{contenders}", ttl=TTL, timeout=60).unlock
    )


report(
    measure(
        host,
        port,
        times,
        {
            "put": lambda: timed(lambda: raw.put("/peer/etcd_core/k", "v"), times),
            "get": lambda: timed(lambda: raw.get("/peer/etcd_core/k"), times),
            "lock cycle": lambda: timed(lambda: client.lock("free", ttl=TTL).unlock(), times),
            "watch latency": watch_latency,
        },
        {n: lambda n=n: contend(n) for n in CONTENDERS},
    )
)
