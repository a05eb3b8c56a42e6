"""Faults under watches and mirrors: nothing is lost, nothing comes twice, nothing ends silently."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from checkers import Hygiene, WatchLog, Witness
from etcd_core import Client, ConfigSnapshot, signals
from etcd_core.dispatch import Subscription
from etcd_core.engine import Engine
from etcd_core.errors import ClusterReset, Compacted
from etcd_core.keys import prefix_range_end
from etcd_core.mirror import Cause, Change, Mirror
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy, RpcCounter, eventually
from etcd_core.watch import Watch
from etcd_core.wire import endpoints
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import RANGE

NOTIFY = "--experimental-watch-progress-notify-interval=200ms"
# Pings go out every 10 s and may take 3 s; a loaded machine gets three times that.
GENEROUS = 40.0
# Of the pings where a test waits for several; etcd refuses more than one in 5 s unless told.
SHORT_PERIOD = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer(flags=["--grpc-keepalive-min-time=1s"]) as server:
        yield server


@pytest.fixture
def witness(server: EtcdServer) -> Iterator[Witness]:
    with Witness(server.endpoint) as witness:
        yield witness


@pytest.fixture
def proxy(server: EtcdServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def engine(proxy: FaultProxy) -> Iterator[Engine]:
    with Client(endpoints=[proxy.endpoint]) as client:
        yield client.scope().engine


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


def follow(engine: Engine, prefix: str, log: WatchLog, start: int = 0) -> Watch:
    key = prefix.encode()
    return engine.hub.watch(key, log, range_end=prefix_range_end(key), start_revision=start)


class Follower:
    """A mirror whose changes are replayed into a dict."""

    def __init__(self, engine: Engine, prefix: str) -> None:
        key = prefix.encode()
        self.mirror = Mirror(engine, key, prefix_range_end(key), f"follow {prefix!r}")
        self.state: dict[bytes, bytes] = {}
        self.changes: list[Change] = []
        self.mirror.start()
        self.mirror.subscribe(self._apply, "replay")
        eventually(lambda: self.changes and not self.mirror.stale)

    def _apply(self, change: Change) -> None:
        for entry in change.deleted:
            del self.state[entry.key]
        for entry in change.put:
            self.state[entry.key] = entry.value
        self.changes.append(change)

    def since(self, count: int) -> list[Change]:
        return self.changes[count:]


def links_of(engine: Engine) -> list[str]:
    return [link.endpoint.target for link in engine.channel.endpoints._links]


def prefer(engine: Engine, server: EtcdServer) -> None:
    links = engine.channel.endpoints
    while links.pick().endpoint.port != server.client_port:
        links.rotate(links.pick())


# -- members that hang -------------------------------------------------------------------------


@pytest.mark.slow
def test_f03_the_member_in_use_hangs(prefix: str) -> None:
    with (
        EtcdCluster(3) as cluster,
        Client(endpoints=cluster.endpoints) as client,
    ):
        engine = client.scope().engine
        hung, other = cluster.followers()
        prefer(engine, hung)
        log = WatchLog()
        with Witness(other.endpoint) as witness:
            start = witness.revision + 1
            follow(engine, prefix, log, start)
            lease = engine.keeper.grant(5, what="grant")
            log.wait_created()
            hung.pause()
            try:
                paused_at = time.monotonic()
                request = pb.RangeRequest(key=prefix.encode())
                engine.channel.unary(RANGE, request, what="get", timeout=15)
                assert time.monotonic() - paused_at < 10
                last = witness.put(f"{prefix}a", "meanwhile")
                # The keep-alive notices first and takes the watch along: long before the ping.
                log.wait_revision(last, GENEROUS)
                assert lease.alive(), lease.lost_reason
            finally:
                hung.resume()
            last = witness.put(f"{prefix}a", "after")
            log.wait_revision(last)
            log.check(witness.history(prefix, start))
            assert lease.alive(), lease.lost_reason


# -- a store that goes back --------------------------------------------------------------------


@pytest.mark.slow
def test_f06_restart_with_an_empty_data_dir(prefix: str) -> None:
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        engine = client.scope().engine
        with Witness(server.endpoint) as witness:
            for number in range(5):
                witness.put(f"{prefix}{number}", "old")
        follower = Follower(engine, prefix)
        raw = WatchLog()
        follow(engine, f"{prefix}raw/", raw, 2)
        raw.wait_created()
        before = len(follower.changes)
        lease = engine.keeper.grant(10, what="grant")
        notices: list[tuple[int, int]] = []

        def note(sender: object, *, before: int, after: int, **_: object) -> None:
            notices.append((before, after))

        with signals.cluster_reset.connected_to(note):
            server.restart(wipe=True)
            with Witness(server.endpoint) as witness:
                witness.put(f"{prefix}0", "new")
                eventually(lambda: follower.state == {f"{prefix}0".encode(): b"new"}, 30)
                raw.wait(lambda log: log.error, 30)
                assert isinstance(raw.error, ClusterReset)
                eventually(lambda: not lease.alive(), 30)
                witness.put(f"{prefix}1", "new")
                eventually(lambda: follower.state == witness.range(prefix), 20)
            eventually(lambda: notices)
        assert len(notices) == 1, "told once"
        changes = follower.since(before)
        assert changes[0].cause is Cause.RESET
        assert [entry.key for change in changes for entry in change.deleted] == [
            f"{prefix}{number}".encode() for number in range(1, 5)
        ]


def test_f06_an_idle_raw_watch_that_was_all_the_client_did(prefix: str) -> None:
    """No unary answer and no event tells the revision: the watch's own headers must."""
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        with Witness(server.endpoint) as witness:
            for _ in range(20):
                witness.put("/other/key")
        log = WatchLog()
        follow(client.scope().engine, prefix, log)
        log.wait_created()
        server.restart(wipe=True)
        log.wait(lambda log: log.error, 30)
        assert isinstance(log.error, ClusterReset)


@pytest.mark.slow
def test_f06_a_second_wipe_is_noticed_too_and_none_is_invented(prefix: str) -> None:
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        engine = client.scope().engine
        notices: list[int] = []

        def note(sender: object, *, before: int, **_: object) -> None:
            notices.append(before)

        with signals.cluster_reset.connected_to(note):
            with Witness(server.endpoint) as witness:
                for _ in range(30):
                    witness.put(f"{prefix}a", "first life")
            follower = Follower(engine, prefix)
            for life in (2, 3):
                server.restart(wipe=True)
                with Witness(server.endpoint) as witness:
                    for number in range(5):
                        witness.put(f"{prefix}{life}", str(number))
                    eventually(lambda w=witness: follower.state == w.range(prefix), 30)
                eventually(lambda life=life: len(notices) == life - 1)
                # A plain restart after a reset must not look like another one.
                server.restart()
                with Witness(server.endpoint) as witness:
                    witness.put(f"{prefix}{life}", "after a plain restart")
                    eventually(lambda w=witness: follower.state == w.range(prefix), 30)
            assert len(notices) == 2


def test_f07_restore_of_an_older_snapshot(prefix: str) -> None:
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        engine = client.scope().engine
        with Witness(server.endpoint) as witness:
            witness.put(f"{prefix}kept", "1")
        backup = server.data_dir.parent / "backup.db"
        server.ctl("snapshot", "save", str(backup))
        with Witness(server.endpoint) as witness:
            for number in range(10):
                witness.put(f"{prefix}lost", str(number))
            follower = Follower(engine, prefix)
            assert len(follower.state) == 2
        raw = WatchLog()
        follow(engine, f"{prefix}raw/", raw, 2)
        raw.wait_created()
        server.stop()
        server.wipe()
        server.ctl(
            "snapshot",
            "restore",
            str(backup),
            f"--data-dir={server.data_dir}",
            f"--name={server.name}",
            f"--initial-cluster={server.name}={server.peer_url}",
            f"--initial-advertise-peer-urls={server.peer_url}",
        )
        server.start()
        eventually(lambda: follower.state == {f"{prefix}kept".encode(): b"1"}, 30)
        raw.wait(lambda log: log.error, 30)
        assert isinstance(raw.error, ClusterReset)


def test_f07_a_unary_answer_notices_the_reset(prefix: str) -> None:
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        engine = client.scope().engine
        with Witness(server.endpoint) as witness:
            for _ in range(20):
                witness.put(f"{prefix}a")
        request = pb.RangeRequest(key=prefix.encode())
        engine.channel.unary(RANGE, request, what="get")
        assert engine.channel.store.epoch == 0
        server.restart(wipe=True)
        eventually(lambda: engine.channel.unary(RANGE, request, what="get", timeout=2.0), 20)
        assert engine.channel.store.epoch == 1


# -- half-open connections ---------------------------------------------------------------------


@pytest.fixture
def pings_per_silence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Have the pings go out more often, where several are to pass before the fault."""
    if request.param:
        often = {"grpc.keepalive_time_ms": int(SHORT_PERIOD * 1000)}
        options = [(name, often.get(name, value)) for name, value in endpoints._OPTIONS]
        monkeypatch.setattr(endpoints, "_OPTIONS", options)
    return int(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("pings_per_silence", [0, 3], ids=["f15", "f16"], indirect=True)
@pytest.mark.timeout(150)
def test_f15_f16_a_half_open_connection(
    pings_per_silence: int, engine: Engine, proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    """The connection is a black hole; only pings can tell. F16: also after a long silence."""
    log = WatchLog()
    start = witness.revision + 1
    follow(engine, prefix, log, start)
    log.wait_created()
    # The passing of time is the fact under test: by default gRPC stops pinging a line after two
    # pings without data, and then took 59 s to see the black hole.
    time.sleep(pings_per_silence * SHORT_PERIOD)
    port = proxy.port
    proxy.hold()
    revisions = [witness.put(f"{prefix}{n}", "meanwhile") for n in range(5)]
    held_at = time.monotonic()
    dead = engine.hub._stream
    eventually(lambda: engine.hub._stream is not dead, GENEROUS)
    assert time.monotonic() - held_at < GENEROUS
    assert proxy.port == port
    # What the black hole swallowed belongs to connections that are given up.
    proxy.reset()
    proxy.heal()
    log.wait_revision(revisions[-1], GENEROUS)
    log.check(witness.history(prefix, start))


# -- compaction --------------------------------------------------------------------------------


def test_f27_compaction_under_a_live_watch(engine: Engine, witness: Witness, prefix: str) -> None:
    log = WatchLog()
    start = witness.revision + 1
    follow(engine, prefix, log, start)
    follower = Follower(engine, prefix)
    log.wait_created()
    for number in range(20):
        witness.put(f"{prefix}a", str(number))
    log.wait_revision(start + 19)
    history = witness.history(prefix, start)
    witness.compact(witness.revision)
    last = witness.put(f"{prefix}a", "after")
    log.wait_revision(last)
    assert log.error is None
    eventually(lambda: follower.state == {f"{prefix}a".encode(): b"after"})
    assert {change.cause for change in follower.changes} == {Cause.INITIAL, Cause.CHANGE}
    log.check([*history, *witness.history(prefix, last)])


@pytest.mark.parametrize("progress", [True, False])
def test_f28_unrelated_writes_compacted_under_an_idle_watch(prefix: str, progress: bool) -> None:
    """With progress notifications it is transparent; without one in time a state watch resyncs.

    etcd's default interval is ten minutes, so the second case is the usual one.
    """
    with (
        EtcdServer(flags=[NOTIFY] if progress else []) as server,
        Witness(server.endpoint) as witness,
        FaultProxy(server.endpoint) as proxy,
        Client(endpoints=[proxy.endpoint]) as client,
    ):
        engine = client.scope().engine
        witness.put(f"{prefix}a", "1")
        follower = Follower(engine, prefix)
        raw = WatchLog()
        watch = follow(engine, prefix, raw)
        raw.wait_created()
        for _ in range(1000):
            unrelated = witness.put("/test/unrelated")
        if progress:
            eventually(lambda: watch.next_revision > unrelated)
            eventually(lambda: follower.mirror.view.revision >= unrelated)
        witness.compact(unrelated)
        proxy.reset()
        last = witness.put(f"{prefix}a", "2")
        eventually(lambda: follower.state == {f"{prefix}a".encode(): b"2"}, 20)
        causes = {change.cause for change in follower.changes}
        if progress:
            raw.wait_revision(last)
            assert raw.error is None
            assert causes == {Cause.INITIAL, Cause.CHANGE}
        else:
            raw.wait(lambda log: log.error)
            assert isinstance(raw.error, Compacted)
            assert not [entry for change in follower.changes for entry in change.deleted]


def test_f29_matching_writes_compacted_while_disconnected(
    engine: Engine, proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    for name in ("kept", "changed", "removed", "replaced"):
        witness.put(f"{prefix}{name}", "1")
    follower = Follower(engine, prefix)
    raw = WatchLog()
    follow(engine, prefix, raw, witness.revision + 1)
    raw.wait_created()
    before = len(follower.changes)
    proxy.refuse()
    proxy.reset()
    witness.put(f"{prefix}changed", "2")
    witness.delete(f"{prefix}removed")
    witness.delete(f"{prefix}replaced")
    witness.put(f"{prefix}replaced", "2")
    witness.put(f"{prefix}added", "2")
    edge = witness.put("/test/unrelated")
    witness.compact(edge)
    proxy.heal()
    raw.wait(lambda log: log.error)
    assert isinstance(raw.error, Compacted)
    assert raw.error.compact_revision == edge
    eventually(lambda: follower.state == witness.range(prefix), 20)
    changes = follower.since(before)
    assert [change.cause for change in changes] == [Cause.RESYNC]
    (change,) = changes
    assert {e.key.removeprefix(prefix.encode()) for e in change.put} == {
        b"changed",
        b"replaced",
        b"added",
    }
    assert {e.key.removeprefix(prefix.encode()) for e in change.deleted} == {b"removed"}
    last = witness.put(f"{prefix}a", "live again")
    eventually(lambda: follower.mirror.view.revision >= last)


# -- callbacks ---------------------------------------------------------------------------------


def test_f46_a_callback_cancels_its_watch_and_begins_another(
    server: EtcdServer, witness: Witness, prefix: str
) -> None:
    """From inside, where waiting for the running callback would be waiting for itself."""
    with Client(endpoints=[server.endpoint], prefix=prefix.rstrip("/")) as client:
        source = client.config_source("app")
        source.save({"a": 0})
        told: list[tuple[str, object]] = []
        begun: list[Subscription] = []

        def second(snapshot: ConfigSnapshot) -> None:
            told.append(("second", snapshot["a"]))

        def first(snapshot: ConfigSnapshot) -> None:
            told.append(("first", snapshot["a"]))
            if snapshot["a"] == 1:
                subscription.cancel()
                begun.append(source.watch(second))

        subscription = source.watch(first)
        eventually(lambda: told == [("first", 0)])
        source.save({"a": 1})
        eventually(lambda: told[1:] == [("first", 1), ("second", 1)])
        source.save({"a": 2})
        eventually(lambda: told[3:] == [("second", 2)])
        begun[0].cancel()
        source.save({"a": 3})
        assert source.load()["a"] == 3
        eventually(lambda: client.scope().engine.hub.count == 0)
        assert len(told) == 4


# -- size --------------------------------------------------------------------------------------


def test_f35_catching_up_over_5_mb(
    engine: Engine, proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    """A batch above gRPC's default limit would fail, and fail again at every resume."""
    log = WatchLog()
    start = witness.revision + 1
    follow(engine, prefix, log, start)
    log.wait_created()
    proxy.refuse()
    proxy.reset()
    for number in range(12):
        last = witness.put(f"{prefix}{number:02}", bytes([65 + number]) * 450_000)
    proxy.heal()
    log.wait_revision(last, 30)
    log.check(witness.history(prefix, start))


def test_f35_a_resync_of_5_mb(
    engine: Engine, proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    follower = Follower(engine, prefix)
    proxy.refuse()
    proxy.reset()
    for number in range(12):
        last = witness.put(f"{prefix}{number:02}", bytes([65 + number]) * 450_000)
    witness.compact(last)
    proxy.heal()
    eventually(lambda: len(follower.state) == 12, 30)
    assert follower.state == witness.range(prefix)


def test_reopening_costs_one_create_per_watch(
    proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    counter = RpcCounter()
    with Client(endpoints=[proxy.endpoint], interceptors=[counter]) as client:
        logs = [WatchLog() for _ in range(50)]
        for number, log in enumerate(logs):
            follow(client.scope().engine, f"{prefix}{number}/", log)
        for log in logs:
            log.wait_created()
        counter.reset()
        proxy.reset()
        for log in logs:
            log.wait_created(2)
        assert counter.streams == {"Watch": counter.streams["Watch"]}
        assert counter.streams["Watch"] <= 3
        assert counter.counts["Watch"] <= 50 * counter.streams["Watch"]


def test_watches_come_and_go_while_connections_break(
    server: EtcdServer, engine: Engine, proxy: FaultProxy, witness: Witness, prefix: str
) -> None:
    """Creates and cancels that meet a dying stream: what is left is complete, nothing is stuck."""
    stop = threading.Event()
    start = witness.revision + 1
    kept: list[WatchLog] = []

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            log = WatchLog()
            watch = follow(engine, prefix, log, start)
            if len(kept) < 60 and chance.random() < 0.1:
                kept.append(log)
                continue
            stop.wait(chance.random() * 0.01)
            watch.cancel()

    def shake() -> None:
        while not stop.wait(0.15):
            proxy.reset()

    def write() -> None:
        number = 0
        with Witness(server.endpoint) as other:
            while not stop.wait(0.005):
                number += 1
                other.put(f"{prefix}{number % 5}", str(number))

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
    threads += [threading.Thread(target=shake), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    time.sleep(2.0)
    stop.set()
    for thread in threads:
        thread.join(20)
    last = witness.put(f"{prefix}end")
    history = witness.history(prefix, start)
    for log in kept:
        log.wait_revision(last, 30)
        log.check(history)
    assert engine.hub.count == len(kept)


def test_open_and_close_in_quick_succession(server: EtcdServer, prefix: str) -> None:
    """A close that meets the opening of the stream is as quick as any other."""
    with Hygiene(server):
        for number in range(40):
            client = Client(endpoints=[server.endpoint])
            log = WatchLog()
            follow(client.scope().engine, prefix, log)
            if number % 2:
                time.sleep(0.002 * (number % 8))
            started = time.monotonic()
            client.close()
            assert time.monotonic() - started < 3.0
            assert log.error is not None
