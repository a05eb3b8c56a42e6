"""The work, done with etcd3gw (HTTP gateway). Its lock does not wait: contenders ask every 2 ms."""

import threading
import time

import etcd3gw
from common import CONTENDERS, arguments, collect, hand_over, report, timed

host, port, times = arguments()
client = etcd3gw.client(host=host, port=port, api_path="/v3/")
local = threading.local()


def mine():
    if not hasattr(local, "client"):
        local.client = etcd3gw.client(host=host, port=port, api_path="/v3/")
    return local.client


def watch_latency():
    events, cancel = client.watch("/peer/etcd3gw/w")

    def once():
        client.put("/peer/etcd3gw/w", "1")
        next(events)

    try:
        return timed(once, times)
    finally:
        cancel()


def take(number):
    lock = mine().lock("crowd-etcd3gw", ttl=30)
    while not lock.acquire():
        time.sleep(0.002)
    return lock.release


def cycle():
    take(0)()


report(
    collect(
        {
            "put": lambda: timed(lambda: client.put("/peer/etcd3gw/k", "v"), times),
            "get": lambda: timed(lambda: client.get("/peer/etcd3gw/k"), times),
            "lock cycle": lambda: timed(cycle, times),
            "watch latency": watch_latency,
            **{f"hand-over, {n}": lambda n=n: hand_over(n, take) for n in CONTENDERS},
        }
    )
)
