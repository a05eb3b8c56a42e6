"""Faults under a configuration: F31, F34, F52, F53, F54, and answers that never come (F21)."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_core import (
    Client,
    Config,
    ConfigNotFound,
    ConfigSnapshot,
    ConfigSource,
    Conflict,
    OutcomeUnknown,
    RequestTooLarge,
    mirror,
)
from etcd_core import source as source_module
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually

WAIT = 30.0


@pytest.fixture
def source(etcd_client: Client) -> ConfigSource:
    return etcd_client.config_source("app")


class BeforeCall(RpcCounter):
    """Runs a function before each request of one kind."""

    def __init__(self, method: str, action: Callable[[int], None]) -> None:
        super().__init__()
        self._method = method
        self._action = action

    def intercept_unary_unary(self, continuation, client_call_details, request):
        if client_call_details.method.endswith(f"/{self._method}"):
            self._action(self.counts.get(self._method, 0))
        return super().intercept_unary_unary(continuation, client_call_details, request)


# -- F31 ---------------------------------------------------------------------------------------


def test_f31_compaction_between_the_pages_of_a_load(etcd_server, etcd_client, monkeypatch):
    writer = etcd_client.config_source("app")
    writer.save({f"k{i:03}": 1 for i in range(100)})

    def overtake(earlier_requests: int) -> None:
        if earlier_requests == 2:
            revision = writer.save({f"k{i:03}": 2 for i in range(100)})
            etcd_server.ctl("compaction", str(revision))

    paged = functools.partial(mirror.read_range, page_size=30)
    monkeypatch.setattr(source_module, "read_range", paged)
    hook = BeforeCall("Range", overtake)
    with Client(etcd_client.config, interceptors=[hook]) as client:
        config = client.config_source("app").load()
    assert dict(config) == {f"k{i:03}": 2 for i in range(100)}
    # Two pages, the refused third, and the four of the second reading.
    assert hook.counts["Range"] == 7


# -- F34 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_572_864, 2_200_000])
def test_f34_too_large_a_save_is_refused_and_writes_nothing(source, size):
    source.save({"a": 1, "b": 2})
    before = source.load()
    for save in (source.save, source.update):
        with pytest.raises(RequestTooLarge, match="1572864"):
            save({"blob": "x" * size})
    with pytest.raises(RequestTooLarge):
        source.save({"blob": "x" * size}, expect=before)
    after = source.load()
    assert (after.revision, dict(after)) == (before.revision, {"a": 1, "b": 2})


def test_f34_the_largest_that_is_accepted_is_accepted_by_etcd(source):
    low, high = 1_572_000, 1_572_864
    while high - low > 1:
        middle = (low + high) // 2
        try:
            source.save({"blob": "x" * middle})
            low = middle
        except RequestTooLarge:
            high = middle
    assert len(source.load()["blob"]) >= low


def test_f34_129_leaves_and_a_key_given_twice(source):
    revision = source.save({f"k{i}": i for i in range(129)})
    with pytest.raises(ValueError, match="both"):
        source.save({"a": 1, "A": 2})
    assert source.load().revision == revision


# -- F52 ---------------------------------------------------------------------------------------


def whole(version: str) -> dict[str, object]:
    """A configuration that shows when it is a mix of two: every leaf names its version."""
    count = 20 + sum(map(ord, version)) % 180
    return {f"table{i % 7}.k{i:03}": version for i in range(count)} | {"count": count}


def is_whole(config: ConfigSnapshot) -> bool:
    versions = {value for path, value in config.items() if path != "count"}
    return len(versions) == 1 and config["count"] == len(config) - 1


def test_f52_concurrent_saves_never_mix(etcd_server, etcd_client, source):
    rounds, writers = 15, 4
    source.save(whole("start"))
    watched: list[ConfigSnapshot] = []
    read: list[ConfigSnapshot] = []
    done = threading.Event()

    def write(number: int) -> list[int]:
        with Client(etcd_client.config) as client:
            mine = client.config_source("app")
            return [mine.save(whole(f"w{number}r{i}"), timeout=WAIT) for i in range(rounds)]

    def keep_reading() -> None:
        with Client(etcd_client.config) as client:
            while not done.is_set():
                read.append(client.config_source("app").load(timeout=WAIT))

    with source.watch(watched.append), ThreadPoolExecutor(writers + 1) as pool:
        reader = pool.submit(keep_reading)
        try:
            revisions = [
                r for f in [pool.submit(write, n) for n in range(writers)] for r in f.result()
            ]
        finally:
            done.set()
        reader.result()
        eventually(lambda: watched[-1].revision >= max(revisions), WAIT)
    assert all(is_whole(config) for config in [*watched, *read])
    # None torn, none twice; a watch that catches up may be given several saves as one step.
    delivered = [config.revision for config in watched[1:]]
    assert delivered == sorted(set(delivered))
    assert set(delivered) <= set(revisions)
    assert len(set(revisions)) == rounds * writers


def test_f52_of_saves_over_one_snapshot_one_wins(etcd_client, source):
    source.save({"owner": "nobody"})
    config = source.load()

    def claim(number: int) -> bool:
        with Client(etcd_client.config) as client:
            try:
                client.config_source("app").save({"owner": number}, expect=config, timeout=WAIT)
            except Conflict:
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        wins = list(pool.map(claim, range(4)))
    assert wins.count(True) == 1
    assert source.load()["owner"] == wins.index(True)


def test_f52_updates_of_one_leaf_lose_nothing(etcd_client, source):
    source.save({"counter": 0, "other": 1})

    def count(_: int) -> None:
        with Client(etcd_client.config) as client:
            mine = client.config_source("app")
            for _ in range(10):
                while True:
                    config = mine.load(timeout=WAIT)
                    try:
                        mine.update({"counter": config["counter"] + 1}, expect=config, timeout=WAIT)
                        break
                    except Conflict:
                        continue

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(count, range(3)))
    assert dict(source.load()) == {"counter": 30, "other": 1}


_SCRIPT = """
import itertools, json, sys
from etcd_core import Client
endpoint, prefix = sys.argv[1:]
source = Client(endpoints=[endpoint], prefix=prefix, timeout=30).config_source("app")
"""
_SAVES_FOR_EVER = (
    _SCRIPT
    + """
print("ready", flush=True)
sys.stdin.readline()
for i in itertools.count():
    count = 20 + i % 180
    source.save({f"table{k % 7}.k{k}": f"v{i}" for k in range(count)} | {"count": count})
"""
)
_BOOTSTRAPS = (
    _SCRIPT
    + """
from concurrent.futures import ThreadPoolExecutor
other = Client(endpoints=[endpoint], prefix=prefix, timeout=30).config_source("app")
for each in source, other:
    each.update({})
defaults = json.loads(sys.stdin.readline())
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(2) as pool:
    wrote = list(pool.map(lambda source, table: source.bootstrap(table), (source, other), defaults))
print(json.dumps(wrote), flush=True)
"""
)


def start(script: str, client: Client) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, client.config.endpoints[0], client.prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_f52_a_killed_writer_leaves_a_whole_config(etcd_client, source, processes):
    processes += [start(_SAVES_FOR_EVER, etcd_client) for _ in range(4)]
    for writer in processes:
        assert read_line(writer) == "ready"
        tell(writer, "go")
        begin = etcd_client.scope().engine.channel.store.revision
        seen: list[ConfigSnapshot] = []
        with source.watch(seen.append):
            eventually(lambda seen=seen, begin=begin: len(seen) > 10, WAIT)
            writer.kill()
            writer.wait()
        assert all(is_whole(config) for config in seen if config.exists)
        assert is_whole(source.load())


# -- F53 ---------------------------------------------------------------------------------------


def test_f53_of_eight_bootstraps_one_writes(etcd_client, source, processes):
    """Two clients in each of four processes."""
    tables = [{"by": number, **{f"k{i}": number for i in range(150)}} for number in range(8)]
    for first in range(0, 8, 2):
        process = start(_BOOTSTRAPS, etcd_client)
        processes.append(process)
        tell(process, json.dumps(tables[first : first + 2]))
    for process in processes:
        assert read_line(process) == "ready"
    for process in processes:
        tell(process, "go")
    wrote = [did for process in processes for did in json.loads(read_line(process))]
    assert len(wrote) == 8
    assert wrote.count(True) == 1
    config = source.load()
    assert set(config.values()) == {wrote.index(True)}
    assert len(config) == 151


def test_f53_bootstrap_never_overwrites_a_real_config(etcd_client, source):
    """A configuration that appears between the look and the write wins."""

    def interfere(earlier_requests: int) -> None:
        if earlier_requests == 0:
            source.save({"real": True})

    hook = BeforeCall("Txn", interfere)
    with Client(etcd_client.config, interceptors=[hook]) as client:
        assert client.config_source("app").bootstrap({"default": True}) is False
    assert dict(source.load()) == {"real": True}


# -- F54 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 127, 128, 129, 1000, 4096, 10_000])
def test_f54_a_save_of_any_size_is_one_revision(source, count):
    started = time.monotonic()
    first = source.save({f"t{i % 50}.k{i}": 0 for i in range(count)}, timeout=WAIT)
    config = source.load()
    assert len(config) == count
    assert {entry.mod_revision for entry in config._view.entries.values()} == {first}
    second = source.save({f"t{i % 50}.k{i}": 1 for i in range(count)}, expect=config, timeout=WAIT)
    assert second == first + 1
    with pytest.raises(Conflict):
        source.save({"a": 1}, expect=config)
    config = source.load()
    assert set(config.values()) == {1}
    assert source.save({}, allow_empty=True, expect=config, timeout=WAIT) == second + 1
    with pytest.raises(ConfigNotFound):
        source.load()
    assert time.monotonic() - started < WAIT


# -- F21: no answer ----------------------------------------------------------------------------


@pytest.fixture
def proxy(etcd_server: EtcdServer) -> Iterator[FaultProxy]:
    with FaultProxy(etcd_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def through(etcd_client: Client, proxy: FaultProxy) -> Iterator[ConfigSource]:
    with Client(Config([proxy.endpoint], prefix=etcd_client.prefix)) as client:
        yield client.config_source("app")


@pytest.mark.parametrize("expecting", [False, True])
def test_f21_an_applied_save_without_an_answer_succeeds_once(source, etcd_client, proxy, expecting):
    def swallow(earlier_requests: int) -> None:
        if earlier_requests == 0:
            proxy.drop("to_client")

    source.save({"a": 1})
    config = Config([proxy.endpoint], prefix=etcd_client.prefix)
    hook = BeforeCall("Txn", swallow)
    seen: list[ConfigSnapshot] = []
    with (
        Client(config, interceptors=[hook]) as client,
        source.watch(seen.append),
        ThreadPoolExecutor(1) as pool,
    ):
        through = client.config_source("app")
        base = through.load() if expecting else None
        outcome = pool.submit(through.save, {"a": 2}, base, timeout=WAIT)
        eventually(lambda: source.load()["a"] == 2, WAIT)
        proxy.heal()
        proxy.reset()
        revision = outcome.result(WAIT)
        eventually(lambda: seen[-1].revision == revision, WAIT)
    assert [config["a"] for config in seen] == [1, 2]
    assert hook.counts["Txn"] == 1


def test_f21_a_save_that_did_not_arrive_is_sent_again(source, through, proxy):
    source.save({"a": 1})
    config = through.load()
    with ThreadPoolExecutor(1) as pool:
        proxy.drop("to_server")
        outcome = pool.submit(through.save, {"a": 2}, config, timeout=WAIT)
        time.sleep(0.2)  # nothing tells that a request was swallowed
        proxy.heal()
        proxy.reset()
        revision = outcome.result(WAIT)
    after = source.load()
    assert (after["a"], after.revision) == (2, revision)


def test_f21_what_cannot_be_told_is_an_unknown_outcome(source, through, proxy):
    source.save({"a": 1})
    config = through.load()
    proxy.drop("to_client")
    with pytest.raises(OutcomeUnknown):
        through.save({"a": 2}, expect=config, timeout=1.0)
    assert source.load()["a"] == 2


def test_f21_a_write_over_ours_is_not_undone(source, through, proxy):
    source.save({"a": 1})
    config = through.load()
    with ThreadPoolExecutor(1) as pool:
        proxy.drop("to_client")
        outcome = pool.submit(through.save, {"a": 2}, config, timeout=WAIT)
        eventually(lambda: source.load()["a"] == 2, WAIT)
        source.save({"a": 3})
        proxy.heal()
        proxy.reset()
        with pytest.raises(OutcomeUnknown, match="somebody else"):
            outcome.result(WAIT)
    assert source.load()["a"] == 3
