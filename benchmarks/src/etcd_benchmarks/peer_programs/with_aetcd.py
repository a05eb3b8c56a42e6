"""The work, done with aetcd (asyncio)."""

import asyncio
import statistics
import time

import aetcd
from common import CONTENDERS, TURNS, arguments, gaps, report

host, port, times = arguments()


async def timed(operation):
    await operation()
    taken = []
    for _ in range(times):
        begins = time.perf_counter()
        await operation()
        taken.append(time.perf_counter() - begins)
    return statistics.median(taken)


async def watch_latency(client):
    arrived = asyncio.Event()
    ready = asyncio.Event()

    async def read():
        watch = await client.watch(b"/peer/aetcd/w")
        ready.set()
        async for _ in watch:
            arrived.set()

    async def once():
        arrived.clear()
        await client.put(b"/peer/aetcd/w", b"1")
        await asyncio.wait_for(arrived.wait(), 5)

    task = asyncio.ensure_future(read())
    try:
        await asyncio.wait_for(ready.wait(), 5)
        return await timed(once)
    finally:
        task.cancel()


async def cycle(client):
    lock = client.lock(b"free", ttl=30)
    await lock.acquire(timeout=60)
    await lock.release()


async def hand_over(client, contenders):
    log = []
    turns = max(2, TURNS // contenders)

    async def contend():
        for _ in range(turns):
            lock = client.lock(b"crowd-aetcd", ttl=30)
            assert await lock.acquire(timeout=60)
            log.append((time.perf_counter(), time.perf_counter()))
            await lock.release()

    await asyncio.wait_for(asyncio.gather(*(contend() for _ in range(contenders))), 20)
    return gaps(log)


async def main():
    client = aetcd.Client(host=host, port=port)
    await client.connect()
    work = {
        "put": lambda: timed(lambda: client.put(b"/peer/aetcd/k", b"v")),
        "get": lambda: timed(lambda: client.get(b"/peer/aetcd/k")),
        "lock cycle": lambda: timed(lambda: cycle(client)),
        "watch latency": lambda: watch_latency(client),
        **{f"hand-over, {n}": lambda n=n: hand_over(client, n) for n in CONTENDERS},
    }
    results = {}
    for name, operation in work.items():
        try:
            results[name] = await operation()
        except BaseException as exc:
            results[name] = f"{type(exc).__name__}: {exc}"[:120]
    report(results)


asyncio.run(main())
