"""The work, done with aetcd (asyncio): contenders are coroutines of one loop."""

import asyncio
import statistics
import time

import aetcd
from common import (
    CONTENDERS,
    PATIENCE,
    TTL,
    Crowd,
    arguments,
    received,
    record,
    report,
    spent,
)

host, port, times, name = arguments()


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
    lock = client.lock(f"{name}-free".encode(), ttl=TTL)
    await lock.acquire(timeout=60)
    await lock.release()


async def contend(client, contenders):
    found = Crowd(contenders)
    key = f"{name}-aetcd-{contenders}".encode()

    async def turns(number):
        for _ in range(found.turns):
            asked = time.perf_counter()
            lock = client.lock(key, ttl=TTL)
            assert await lock.acquire(timeout=60)
            taken = time.perf_counter()
            found.note(number, asked, taken, time.perf_counter())
            await lock.release()

    tasks = [asyncio.ensure_future(turns(number)) for number in range(contenders)]
    _, late = await asyncio.wait(tasks, timeout=PATIENCE)
    for task in late:
        task.cancel()
    return found


async def main():
    client = aetcd.Client(host=host, port=port)
    await client.connect()
    operations = {
        "put": lambda: timed(lambda: client.put(b"/peer/aetcd/k", b"v")),
        "get": lambda: timed(lambda: client.get(b"/peer/aetcd/k")),
        "lock cycle": lambda: timed(lambda: cycle(client)),
        "watch latency": lambda: watch_latency(client),
    }
    results = {}
    for operation_name, operation in operations.items():
        try:
            before = received(host, port)
            seconds = await operation()
            requests = spent(before, received(host, port), times + 1)
            results[operation_name] = {"seconds": seconds, "requests": requests}
        except BaseException as exc:
            results[operation_name] = {"note": f"{type(exc).__name__}: {exc}"[:120]}
    for contenders in CONTENDERS:
        before = received(host, port)
        found = await contend(client, contenders)
        requests = spent(before, received(host, port), len(found.log) or 1)
        record(results, contenders, found.figures(), requests)
    report(results)


asyncio.run(main())
