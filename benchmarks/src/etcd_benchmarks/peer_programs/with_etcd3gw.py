"""The work, done with etcd3gw (HTTP gateway). Its lock does not wait: contenders ask every 2 ms."""

import threading
import time

import etcd3gw
from common import CONTENDERS, TTL, arguments, crowd, measure, report, timed

host, port, times, name = arguments()
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


def take(lock_name):
    lock = mine().lock(lock_name, ttl=TTL)
    while not lock.acquire():
        time.sleep(0.002)
    return lock.release


report(
    measure(
        host,
        port,
        times,
        {
            "put": lambda: timed(lambda: client.put("/peer/etcd3gw/k", "v"), times),
            "get": lambda: timed(lambda: client.get("/peer/etcd3gw/k"), times),
            "lock cycle": lambda: timed(lambda: take(f"{name}-free")(), times),
            "watch latency": watch_latency,
        },
        {n: lambda n=n: crowd(n, lambda number: take(f"{name}-etcd3gw-{n}")) for n in CONTENDERS},
    )
)
