"""The watch hub and the mirror on a real server: one stream, whole revisions, resume, resync."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from checkers import Hygiene, WatchLog, Witness
from etcd_core import Client, Config
from etcd_core.errors import ClosedError, Compacted
from etcd_core.keys import prefix_range_end
from etcd_core.mirror import Cause, Change, Mirror, read_range
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from etcd_core.watch import Events, Watch, WatchHub
from etcd_core.wire import messages as pb

NOTIFY = "--experimental-watch-progress-notify-interval=200ms"


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(flags=[NOTIFY]) as server:
        yield server


@pytest.fixture
def witness(server: EtcdServer) -> Iterator[Witness]:
    with Witness(server.endpoint) as witness:
        yield witness


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(server: EtcdServer, counter: RpcCounter) -> Iterator[Client]:
    with Hygiene(server):
        client = Client(Config([server.endpoint]), interceptors=[counter])
        yield client
        client.close()


@pytest.fixture
def hub(client: Client) -> WatchHub:
    return client.scope().engine.hub


def follow(hub: WatchHub, prefix: str, log: WatchLog, start: int = 0, **more: bool) -> Watch:
    key = prefix.encode()
    return hub.watch(key, log, range_end=prefix_range_end(key), start_revision=start, **more)


def put_all(witness: Witness, values: dict[str, bytes]) -> int:
    """Put all of them in one revision."""
    puts = [
        pb.RequestOp(request_put=pb.PutRequest(key=k.encode(), value=v)) for k, v in values.items()
    ]
    return witness.call("KV/Txn", pb.TxnRequest(success=puts)).header.revision


def test_from_now_and_from_a_revision(hub: WatchHub, witness: Witness, prefix: str) -> None:
    first = witness.put(f"{prefix}a", "1")
    now, past = WatchLog(), WatchLog()
    follow(hub, prefix, now)
    follow(hub, prefix, past, first)
    now.wait_created()
    last = witness.put(f"{prefix}a", "2")
    for log, start in ((now, first + 1), (past, first)):
        log.wait_revision(last)
        log.check(witness.history(prefix, start))


def test_many_watches_share_one_stream_and_have_ids_of_their_own(
    hub: WatchHub, witness: Witness, prefix: str, counter: RpcCounter
) -> None:
    logs = [WatchLog() for _ in range(100)]
    watches = [follow(hub, f"{prefix}{n}/", log) for n, log in enumerate(logs)]
    assert sorted({w.id for w in watches}) == [w.id for w in watches]
    assert min(w.id for w in watches) >= 1, "3.5.1 kills watch 0 when it refuses another"
    for log in logs:
        log.wait_created()
    assert counter.streams["Watch"] == 1
    assert counter.counts["Watch"] == 100
    assert hub.count == 100
    revisions = [witness.put(f"{prefix}{n}/k") for n in range(100)]
    for log, revision in zip(logs, revisions, strict=True):
        log.wait_revision(revision)
        assert [e.revision for e in log.events] == [revision], "W7 Filter"


def test_prev_kv_and_deletes(hub: WatchHub, witness: Witness, prefix: str) -> None:
    log = WatchLog()
    start = witness.revision + 1
    follow(hub, prefix, log, start, prev_kv=True)
    for value in ("1", "2", "3"):
        witness.put(f"{prefix}a", value)
    witness.delete(prefix)
    witness.put(f"{prefix}a", "4")
    last = witness.delete(prefix)
    log.wait_revision(last)
    log.check(witness.history(prefix, start), prev_values=True)
    assert any(
        e.HasField("prev_kv") for d in log.deliveries if isinstance(d, Events) for e in d.events
    )


def test_filters(hub: WatchHub, witness: Witness, prefix: str) -> None:
    puts, deletes = WatchLog(), WatchLog()
    key = prefix.encode()
    start = witness.revision + 1
    for log, dropped in (
        (puts, pb.WatchCreateRequest.NODELETE),
        (deletes, pb.WatchCreateRequest.NOPUT),
    ):
        hub.watch(
            key, log, range_end=prefix_range_end(key), start_revision=start, filters=[dropped]
        )
    put = witness.put(f"{prefix}a")
    deleted = witness.delete(prefix)
    puts.wait_revision(put)
    deletes.wait_revision(deleted)
    assert [e.kind for e in puts.events] == ["PUT"]
    assert [e.kind for e in deletes.events] == ["DELETE"]


@pytest.mark.parametrize("live", [True, False], ids=["live", "catching up"])
def test_a_big_revision_arrives_whole(prefix: str, live: bool) -> None:
    """12 x 400 KB in one revision: etcd sends it in fragments, the sink gets it in one (W4)."""
    with (
        EtcdServer(flags=["--max-request-bytes=10485760"]) as big,
        Witness(big.endpoint) as see,
        Client(endpoints=[big.endpoint]) as client,
    ):
        log = WatchLog()
        hub = client.scope().engine.hub
        start = see.revision + 1
        if live:
            follow(hub, prefix, log, start)
            log.wait_created()
        values = {f"{prefix}{n:02}": bytes([65 + n]) * 400_000 for n in range(12)}
        revision = put_all(see, values)
        if not live:
            follow(hub, prefix, log, start)
        log.wait_revision(revision, 30)
        batches = [d for d in log.deliveries if isinstance(d, Events)]
        assert len(batches) == 1
        assert {e.kv.key.decode(): e.kv.value for e in batches[0].events} == values
        later = see.put(f"{prefix}later")
        log.wait_revision(later)
        log.check(see.history(prefix, start))


def test_a_long_history_is_caught_up_without_a_gap(
    witness: Witness, server: EtcdServer, prefix: str
) -> None:
    """Batches of 1000 revisions, whose header is ahead of them: the trap of fact W5."""
    with FaultProxy(server.endpoint) as proxy, Client(endpoints=[proxy.endpoint]) as other:
        start = witness.revision + 1
        for number in range(2500):
            witness.put(f"{prefix}{number % 7}", str(number))
        cuts = iter([1, 1])

        def cut(delivery: object) -> None:
            if isinstance(delivery, Events) and next(cuts, 0):
                proxy.reset()

        log = WatchLog(cut)
        follow(other.scope().engine.hub, prefix, log, start)
        last = witness.put(f"{prefix}end")
        log.wait_revision(last, 30)
        log.check(witness.history(prefix, start))
        assert len(log.created) >= 2, "it was resumed"


def test_progress_moves_the_next_revision(hub: WatchHub, witness: Witness, prefix: str) -> None:
    log = WatchLog()
    start = witness.revision + 1
    watch = follow(hub, prefix, log)
    log.wait_created()
    unrelated = witness.put(f"/test/unrelated/{uuid.uuid4().hex}")
    log.wait(lambda log: log.progress and log.progress[-1].revision >= unrelated)
    assert watch.next_revision > unrelated
    last = witness.put(f"{prefix}a")
    log.wait_revision(last)
    log.check(witness.history(prefix, start))


def test_a_revision_that_is_to_come(hub: WatchHub, witness: Witness, prefix: str) -> None:
    log = WatchLog()
    start = witness.revision + 3
    follow(hub, prefix, log, start)
    log.wait_created()
    witness.put(f"{prefix}a", "early")
    witness.put(f"{prefix}a", "early")
    last = witness.put(f"{prefix}a", "on time")
    log.wait_revision(last)
    assert [e.value for e in log.events] == [b"on time"], "W11"


def test_compacted_from_the_start(hub: WatchHub, witness: Witness, prefix: str) -> None:
    old = witness.put(f"{prefix}a", "1")
    edge = witness.put(f"{prefix}a", "2")
    witness.compact(edge)
    log, at_edge = WatchLog(), WatchLog()
    follow(hub, prefix, log, old)
    follow(hub, prefix, at_edge, edge)
    log.wait(lambda log: log.error)
    assert isinstance(log.error, Compacted)
    assert log.error.compact_revision == edge
    assert str(edge) in str(log.error)
    at_edge.wait_revision(edge)
    assert at_edge.error is None
    eventually(lambda: hub.count == 1)


def test_cancel_races(hub: WatchHub, witness: Witness, prefix: str, server: EtcdServer) -> None:
    """Cancel before, during and after the create's answer; nothing follows, nothing is left."""
    busy = WatchLog()
    start = witness.revision + 1
    follow(hub, prefix, busy, start)
    busy.wait_created()
    for round_ in range(60):
        log = WatchLog()
        watch = follow(hub, prefix, log)
        if round_ % 3 == 1:
            witness.put(f"{prefix}k", str(round_))
        if round_ % 3 == 2:
            log.wait_created()
        watch.cancel()
        watch.cancel()
    last = witness.put(f"{prefix}k", "end")
    busy.wait_revision(last)
    busy.check(witness.history(prefix, start))
    assert hub.count == 1
    eventually(lambda: server_watchers(server) == 1)


def server_watchers(server: EtcdServer) -> int:
    import urllib.request

    with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("etcd_debugging_mvcc_watcher_total "):
                return int(float(line.split()[1]))
    raise AssertionError("the server does not count its watchers")


def test_cancel_from_the_sink_and_a_new_watch_from_the_sink(
    hub: WatchHub, witness: Witness, prefix: str
) -> None:
    second = WatchLog()
    watches: list[Watch] = []

    def change(delivery: object) -> None:
        if isinstance(delivery, Events):
            watches[0].cancel()
            follow(hub, prefix, second, delivery.revision + 1)

    first = WatchLog(change)
    watches.append(follow(hub, prefix, first))
    first.wait_created()
    one = witness.put(f"{prefix}a", "1")
    two = witness.put(f"{prefix}a", "2")
    second.wait_revision(two)
    assert [e.revision for e in first.events] == [one]
    second.check(witness.history(prefix, one + 1))


def test_a_sink_that_raises_ends_nothing(
    hub: WatchHub, witness: Witness, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(delivery: object) -> None:
        raise RuntimeError("on purpose")

    log = WatchLog()
    follow(hub, prefix, WatchLog(fail))
    follow(hub, prefix, log)
    log.wait_created()
    last = witness.put(f"{prefix}a")
    log.wait_revision(last)
    assert "its sink failed" in caplog.text


def test_close_tells_every_watch(server: EtcdServer, prefix: str) -> None:
    client = Client(endpoints=[server.endpoint])
    logs = [WatchLog() for _ in range(3)]
    for log in logs:
        follow(client.scope().engine.hub, prefix, log)
    logs[0].wait_created()
    hub = client.scope().engine.hub
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 5.0
    assert all(isinstance(log.error, ClosedError) for log in logs)
    with pytest.raises(ClosedError):
        hub.watch(b"a", WatchLog())


def test_close_while_etcd_is_away(server: EtcdServer, prefix: str) -> None:
    with FaultProxy(server.endpoint) as proxy:
        proxy.refuse()
        client = Client(endpoints=[proxy.endpoint])
        log = WatchLog()
        follow(client.scope().engine.hub, prefix, log)
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 5.0
        assert isinstance(log.error, ClosedError)


def test_resume_after_a_reset_of_the_connection(
    witness: Witness, server: EtcdServer, prefix: str
) -> None:
    with FaultProxy(server.endpoint) as proxy, Client(endpoints=[proxy.endpoint]) as client:
        logs = [WatchLog() for _ in range(20)]
        start = witness.revision + 1
        for log in logs:
            follow(client.scope().engine.hub, prefix, log)
        for log in logs:
            log.wait_created()
        for round_ in range(3):
            witness.put(f"{prefix}a", f"before {round_}")
            proxy.refuse()
            proxy.reset()
            last = witness.put(f"{prefix}a", f"meanwhile {round_}")
            proxy.heal()
            for log in logs:
                log.wait_revision(last)
        history = witness.history(prefix, start)
        for log in logs:
            log.check(history)


# -- mirror ------------------------------------------------------------------------------------


class Changes:
    """Keeps the changes of a mirror, and replays them into a dict."""

    def __init__(self) -> None:
        self.seen: list[Change] = []
        self.state: dict[bytes, bytes] = {}

    def __call__(self, change: Change) -> None:
        for entry in change.deleted:
            del self.state[entry.key]
        for entry in change.put:
            self.state[entry.key] = entry.value
        self.seen.append(change)

    @property
    def causes(self) -> list[Cause]:
        return [change.cause for change in self.seen]


@pytest.fixture
def mirror(client: Client, prefix: str) -> Iterator[Mirror]:
    key = prefix.encode()
    mirror = Mirror(client.scope().engine, key, prefix_range_end(key), f"follow {prefix!r}")
    yield mirror
    mirror.close()


def values(mirror: Mirror) -> dict[bytes, bytes]:
    return {key: entry.value for key, entry in mirror.view.entries.items()}


def test_mirror_follows(mirror: Mirror, witness: Witness, prefix: str) -> None:
    witness.put(f"{prefix}a", "1")
    assert mirror.view.revision == 0
    assert mirror.stale
    view = mirror.start()
    assert values(mirror) == {f"{prefix}a".encode(): b"1"}
    assert mirror.view is view
    changes = Changes()
    strand = mirror.subscribe(changes, "test")
    eventually(lambda: not mirror.stale)
    witness.put(f"{prefix}b", "2")
    witness.delete(f"{prefix}a")
    last = witness.put(f"{prefix}b", "3")
    eventually(lambda: mirror.view.revision >= last)
    eventually(lambda: changes.state == witness.range(prefix))
    assert changes.causes[0] is Cause.INITIAL
    assert set(changes.causes[1:]) == {Cause.CHANGE}
    mirror.unsubscribe(strand)
    strand.close()
    witness.put(f"{prefix}c")
    eventually(lambda: len(mirror.view.entries) == 2)
    assert f"{prefix}c".encode() not in changes.state


def test_mirror_sees_what_came_between_read_and_watch(
    client: Client, witness: Witness, prefix: str
) -> None:
    """No gap: the watch starts at the read's revision, however late it starts."""
    key = prefix.encode()
    engine = client.scope().engine
    old = read_range(engine.channel, key, prefix_range_end(key), what="read")
    last = witness.put(f"{prefix}between")
    mirror = Mirror(engine, key, prefix_range_end(key), "follow")
    mirror.start(since=old)
    eventually(lambda: mirror.view.revision >= last)
    assert set(values(mirror)) == {f"{prefix}between".encode()}
    mirror.close()


def test_mirror_advances_without_events(mirror: Mirror, witness: Witness, prefix: str) -> None:
    mirror.start()
    unrelated = witness.put(f"/test/unrelated/{uuid.uuid4().hex}")
    eventually(lambda: mirror.view.revision >= unrelated)


def test_one_revision_is_one_change(mirror: Mirror, witness: Witness, prefix: str) -> None:
    mirror.start()
    changes = Changes()
    mirror.subscribe(changes, "test", initial=False)
    put_all(witness, {f"{prefix}{n}": b"x" for n in range(100)})
    eventually(lambda: changes.seen)
    assert len(changes.seen) == 1
    assert len(changes.seen[0].put) == 100


def test_a_slow_subscriber_stalls_no_other(mirror: Mirror, witness: Witness, prefix: str) -> None:
    release = threading.Event()
    slow_calls: list[Change] = []

    def slow(change: Change) -> None:
        slow_calls.append(change)
        release.wait(30)

    mirror.start()
    changes = Changes()
    mirror.subscribe(slow, "slow")
    mirror.subscribe(changes, "quick")
    for number in range(20):
        witness.put(f"{prefix}{number}")
    eventually(lambda: len(changes.state) == 20)
    assert len(slow_calls) == 1
    release.set()


def test_pages_are_of_one_revision(client: Client, witness: Witness, prefix: str) -> None:
    for number in range(25):
        witness.put(f"{prefix}{number:02}", "same")
    stop = threading.Event()

    def churn() -> None:
        number = 0
        with Witness(client.config.endpoints[0]) as other:
            while not stop.is_set():
                number += 1
                put_all(other, {f"{prefix}{n:02}": str(number).encode() for n in range(25)})

    thread = threading.Thread(target=churn)
    thread.start()
    key = prefix.encode()
    try:
        for _ in range(30):
            view = read_range(
                client.scope().engine.channel, key, prefix_range_end(key), what="r", page_size=4
            )
            assert len({e.mod_revision for e in view.entries.values()}) <= 1 or all(
                e.value == b"same" for e in view.entries.values()
            )
            assert len(view.entries) == 25
    finally:
        stop.set()
        thread.join()
