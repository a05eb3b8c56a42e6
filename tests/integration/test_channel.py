"""The channel on real servers: laziness, failover, deadlines, typed errors, TLS, auto-sync."""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from checkers import Hygiene, WatchLog, Witness
from etcd_core import Client, Config, Tls, connect, signals
from etcd_core.errors import (
    ClosedError,
    ConnectionFailed,
    EtcdError,
    InvalidConfig,
    OutcomeUnknown,
    RequestTimeout,
    RequestTooLarge,
    ServerError,
    Unauthenticated,
)
from etcd_core.testing import (
    EtcdCluster,
    EtcdServer,
    FaultProxy,
    RpcCounter,
    TestCA,
    TlsFiles,
    eventually,
)
from etcd_core.wire import messages as pb
from etcd_core.wire.channel import Channel
from etcd_core.wire.endpoints import Endpoints, Link
from etcd_core.wire.rpc import PUT, RANGE


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def dead() -> Iterator[str]:
    """An endpoint that refuses: bound, so that nobody else gets it, and not listening."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{sock.getsockname()[1]}"


def channel_of(client: Client) -> Channel:
    return client.scope().engine.channel


def put(client: Client, key: str, value: bytes = b"v", timeout: float | None = 5.0) -> int:
    request = pb.PutRequest(key=key.encode(), value=value)
    answer = channel_of(client).unary(PUT, request, what=f"put {key!r}", timeout=timeout)
    return answer.header.revision


def get(client: Client, key: str, timeout: float | None = 5.0) -> bytes | None:
    request = pb.RangeRequest(key=key.encode())
    answer = channel_of(client).unary(RANGE, request, what=f"get {key!r}", timeout=timeout)
    return answer.kvs[0].value if answer.kvs else None


def prefer(client: Client, endpoint: str) -> None:
    """Make ``endpoint`` the current one: the start is random."""
    links = channel_of(client).endpoints
    port = endpoint.rpartition(":")[2]
    while not str(links.pick().endpoint).endswith(f":{port}"):
        links.rotate(links.pick())


def etcd_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("etcd-")]


def test_making_a_client_does_nothing(dead: str) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        listener.settimeout(0.2)
        before = set(etcd_threads())
        port = listener.getsockname()[1]
        client = Client(endpoints=[f"127.0.0.1:{port}"], username="u", password="p")
        assert client.connected
        assert set(etcd_threads()) == before
        with pytest.raises(TimeoutError):
            listener.accept()
        client.close()


def test_use_and_close_leaves_nothing(etcd_server: EtcdServer, prefix: str) -> None:
    with Hygiene(etcd_server, prefix=prefix), Client(endpoints=[etcd_server.endpoint]) as client:
        put(client, f"{prefix}a")
        assert get(client, f"{prefix}a") == b"v"
        client.raw.delete_prefix(prefix)


def test_a_dead_endpoint_in_the_list(etcd_server: EtcdServer, prefix: str, dead: str) -> None:
    with Client(endpoints=[dead, etcd_server.endpoint]) as client:
        prefer(client, dead)
        started = time.monotonic()
        # Refused means not executed: a plain write may go on to the next endpoint.
        put(client, f"{prefix}a")
        assert get(client, f"{prefix}a") == b"v"
        assert time.monotonic() - started < 5.0
        assert client.connected


def test_nothing_listens(dead: str, prefix: str) -> None:
    with Client(endpoints=[dead], timeout=0.4) as client:
        for call in (lambda: get(client, "a", 0.4), lambda: put(client, "a", timeout=0.4)):
            started = time.monotonic()
            with pytest.raises(ConnectionFailed, match=r"'a'.*refused") as failure:
                call()
            assert 0.2 < time.monotonic() - started < 5.0
            assert failure.value.retryable
            assert not failure.value.outcome_unknown
        assert not client.connected


def test_silence_is_a_timeout_for_reads_and_unknown_for_writes(
    etcd_server: EtcdServer, prefix: str
) -> None:
    with FaultProxy(etcd_server.endpoint) as proxy, Client(endpoints=[proxy.endpoint]) as client:
        put(client, f"{prefix}a")
        proxy.hold()
        with pytest.raises(RequestTimeout, match=f"get '{prefix}a'"):
            get(client, f"{prefix}a", 0.3)
        with pytest.raises(OutcomeUnknown, match=f"put '{prefix}a'") as failure:
            put(client, f"{prefix}a", b"late", 0.3)
        assert failure.value.outcome_unknown
        assert not failure.value.retryable
        proxy.heal()
        # It may be applied late, or not at all.
        assert eventually(lambda: get(client, f"{prefix}a"), 15) in (b"v", b"late")


def test_a_timeout_is_kept_and_the_client_recovers(etcd_server: EtcdServer) -> None:
    with FaultProxy(etcd_server.endpoint) as proxy, Client(endpoints=[proxy.endpoint]) as client:
        proxy.hold()
        started = time.monotonic()
        with pytest.raises(RequestTimeout):
            get(client, "a", 0.3)
        assert 0.25 < time.monotonic() - started < 3.0
        proxy.heal()
        assert get(client, "no such key") is None


def test_a_final_answer_is_raised_at_once(etcd_server: EtcdServer) -> None:
    counter = RpcCounter()
    config = Config([etcd_server.endpoint])
    with Client(config, interceptors=[counter]) as client:
        with pytest.raises(ServerError, match="key is not provided") as failure:
            put(client, "")
        assert failure.value.code == "INVALID_ARGUMENT"
        with pytest.raises(RequestTooLarge):
            put(client, "a", b"x" * 1_600_000)
        with pytest.raises(RequestTooLarge):
            put(client, "a", b"x" * 2_200_000)
        assert counter.counts == {"Put": 3}


def test_a_big_answer(etcd_server: EtcdServer, prefix: str) -> None:
    with Client(endpoints=[etcd_server.endpoint]) as client:
        for number in range(5):
            put(client, f"{prefix}{number}", bytes([65 + number]) * 1_000_000)
        request = pb.RangeRequest(key=prefix.encode(), range_end=prefix.encode()[:-1] + b"0")
        answer = channel_of(client).unary(RANGE, request, what="get", timeout=20)
        assert [len(kv.value) for kv in answer.kvs] == [1_000_000] * 5
        client.raw.delete_prefix(prefix)


def test_close_ends_a_call_in_flight(etcd_server: EtcdServer) -> None:
    with FaultProxy(etcd_server.endpoint) as proxy:
        client = Client(endpoints=[proxy.endpoint])
        get(client, "a")
        proxy.hold()
        ended: list[tuple[str, float]] = []

        def call(kind: str) -> None:
            try:
                put(client, "a", timeout=30) if kind == "put" else get(client, "a", 30)
            except ClosedError:
                ended.append((kind, time.monotonic()))

        threads = [threading.Thread(target=call, args=(k,)) for k in ("put", "get")]
        for thread in threads:
            thread.start()
        eventually(lambda: proxy.connections > 0)
        time.sleep(0.1)
        closed_at = time.monotonic()
        client.close()
        for thread in threads:
            thread.join(10)
        assert sorted(kind for kind, _ in ended) == ["get", "put"]
        assert max(at for _, at in ended) - closed_at < 5.0
        with pytest.raises(ClosedError):
            get(client, "a")


def test_an_outage_is_one_warning_and_one_recovery(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[bool] = []

    def note(sender: object, *, connected: bool, **_: object) -> None:
        told.append(connected)

    with (
        FaultProxy(etcd_server.endpoint) as proxy,
        Client(endpoints=[proxy.endpoint]) as client,
        signals.connection_state_changed.connected_to(note),
        caplog.at_level(logging.WARNING, "etcd_core"),
    ):
        get(client, "a")
        proxy.refuse()
        proxy.reset()
        for _ in range(3):
            with pytest.raises(ConnectionFailed):
                get(client, "a", 0.3)
        assert not client.connected
        proxy.heal()
        eventually(lambda: get(client, "a", 1.0) is None, 15)
        assert client.connected
        eventually(lambda: told == [False, True])
    texts = [r.getMessage() for r in caplog.records]
    assert len(texts) == 2, texts
    assert "cannot be reached" in texts[0]
    assert "reachable again" in texts[1]


def test_a_connection_that_breaks_is_not_an_outage(
    etcd_server: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        FaultProxy(etcd_server.endpoint) as proxy,
        Client(endpoints=[proxy.endpoint]) as client,
        caplog.at_level(logging.WARNING, "etcd_core"),
    ):
        log = WatchLog()
        client.scope().engine.hub.watch(b"no such key", log)
        for times in range(1, 6):
            log.wait_created(times)
            assert get(client, "no such key") is None
            proxy.reset()
        log.wait_created(6)
    assert caplog.records == []


def test_a_member_without_a_leader_refuses_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with EtcdCluster(3) as cluster:
        survivor = cluster.followers()[0]
        with Client(endpoints=[survivor.endpoint]) as client:
            get(client, "a")
            for member in cluster.members:
                if member is not survivor:
                    member.kill()
            eventually(lambda: survivor.status().leader == 0, 20)
            started = time.monotonic()
            with pytest.raises(ConnectionFailed, match="no leader"):
                put(client, "a", timeout=1.0)
            # Without `hasleader` the member would sit on it for seven seconds.
            assert time.monotonic() - started < 4.0


@pytest.mark.slow
def test_auto_sync_finds_a_new_member_and_drops_a_removed_one() -> None:
    # Of two: one alone would have no majority until the one that is added has caught up.
    with EtcdCluster(2) as cluster:
        seed = cluster.members[0]
        config = Config([seed.endpoint], auto_sync_interval=0.1)
        with Hygiene(seed), Client(config) as client:
            get(client, "a")
            endpoints = channel_of(client).endpoints
            eventually(lambda: len(endpoints) == 2, 15)
            added = cluster.add_member()
            eventually(lambda: len(endpoints) == 3, 15)
            assert str(added.client_port) in ",".join(endpoints.addresses)
            cluster.remove_member(added)
            eventually(lambda: len(endpoints) == 2, 30)
            # The commit of the removal is on disk with the next write only.
            put(client, "a")
            # The seed stays, whatever the cluster says.
            for member in cluster.members:
                member.kill()
            # The first attempt may have been under way when the members died.
            with pytest.raises((ConnectionFailed, RequestTimeout)):
                get(client, "a", 0.5)
            assert len(endpoints) == 2
            cluster.start()
            assert eventually(lambda: get(client, "a", 1.0), 20) == b"v"


def test_calls_go_on_while_the_endpoint_list_changes(etcd_server: EtcdServer) -> None:
    """A link that is dropped between pick and use is not a closed client."""
    from etcd_core.config import Endpoint

    with Client(endpoints=[etcd_server.endpoint]) as client:
        endpoints = channel_of(client).endpoints
        mine = Endpoint.parse(etcd_server.endpoint)
        stop = threading.Event()
        other = Endpoint.parse(f"localhost:{mine.port}")

        def churn() -> None:
            while not stop.is_set():
                endpoints.replace([mine, other])
                endpoints.rotate(endpoints.pick())
                endpoints.replace([mine])

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                assert get(client, "no such key") is None
        finally:
            stop.set()
            thread.join()


def test_a_link_that_is_dropped_after_it_was_picked(
    etcd_server: EtcdServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(endpoints=[etcd_server.endpoint]) as client:
        endpoints = channel_of(client).endpoints
        dropped = endpoints._open(endpoints.pick().endpoint, seed=False)
        dropped.close()
        picks: list[Link] = []

        def pick_once(self: Endpoints, real: Callable[[Endpoints], Link] = Endpoints.pick) -> Link:
            picks.append(real(self) if picks else dropped)
            return picks[-1]

        monkeypatch.setattr(Endpoints, "pick", pick_once)
        # Not even a plain write is in doubt: nothing was sent.
        put(client, f"{prefix}a")
        assert len(picks) == 2
        picks.clear()
        log = WatchLog()
        client.scope().engine.hub.watch(b"a", log)
        log.wait_created()
        assert picks[0] is dropped
        monkeypatch.undo()
        client.raw.delete_prefix(prefix)


def test_connect(etcd_server: EtcdServer, dead: str) -> None:
    with connect(endpoints=[etcd_server.endpoint]) as client:
        assert get(client, "no such key") is None
    started = time.monotonic()
    with pytest.raises(ConnectionFailed, match=f"connect to {dead}"):
        connect(endpoints=[dead], dial_timeout=0.3)
    assert time.monotonic() - started < 5.0
    assert not [name for name in etcd_threads() if not name.startswith("etcd-test")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> TestCA:
    return TestCA(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def mutual(authority: TestCA) -> Iterator[tuple[EtcdServer, TlsFiles]]:
    files = authority.files(mutual=True)
    with EtcdServer(tls=files) as server:
        yield server, files


def test_tls(authority: TestCA) -> None:
    with EtcdServer(tls=authority.files()) as server:
        tls = Tls(ca=authority.ca)
        for endpoint in (server.endpoint, f"localhost:{server.client_port}"):
            with connect(endpoints=[endpoint], tls=tls) as client:
                put(client, "a")
                assert get(client, "a") == b"v"
        with connect(endpoints=[server.endpoint], tls=Tls(ca=authority.ca.read_bytes())) as client:
            assert get(client, "a") == b"v"


def test_mtls(mutual: tuple[EtcdServer, TlsFiles]) -> None:
    server, files = mutual
    tls = Tls(ca=files.ca, cert=files.client.cert, key=files.client.key)
    with connect(endpoints=[server.endpoint], tls=tls) as client:
        put(client, "a")
        assert get(client, "a") == b"v"


def test_server_name(authority: TestCA) -> None:
    with EtcdServer(tls=authority.files(hosts=["etcd.internal"])) as server:
        tls = Tls(ca=authority.ca, server_name="etcd.internal")
        with connect(endpoints=[server.endpoint], tls=tls) as client:
            assert get(client, "a") is None


def test_unreadable_tls_files_are_a_config_error(etcd_server: EtcdServer, tmp_path: Path) -> None:
    with (
        Client(endpoints=["localhost:1"], tls=Tls(ca=tmp_path / "none.pem")) as client,
        pytest.raises(InvalidConfig, match=r"none\.pem"),
    ):
        get(client, "a")


def test_login_survives_a_hung_first_endpoint() -> None:
    with (
        EtcdServer(auth="secret") as server,
        FaultProxy(server.endpoint) as proxy,
        Client(
            endpoints=[proxy.endpoint, server.endpoint], username="root", password="secret"
        ) as client,
    ):
        prefer(client, proxy.endpoint)
        proxy.hold()
        assert get(client, "no such key", 10.0) is None


def test_a_wrong_password_is_told_by_connect() -> None:
    with EtcdServer(auth="secret") as server:
        with pytest.raises(Unauthenticated, match="root") as failure:
            connect(endpoints=[server.endpoint], username="root", password="hunter2")
        assert "hunter2" not in str(failure.value)
        with connect(endpoints=[server.endpoint], username="root", password="secret") as client:
            put(client, "a")
        assert "secret" not in repr(client)


def test_a_witness_agrees(etcd_server: EtcdServer, prefix: str) -> None:
    with Client(endpoints=[etcd_server.endpoint]) as client, Witness(etcd_server.endpoint) as see:
        revision = put(client, f"{prefix}a", b"1")
        # Not from the first revision: the server is shared, and other tests compact it.
        history = see.history(prefix, first=revision)
        assert [(e.revision, e.kind, e.value) for e in history] == [(revision, "PUT", b"1")]
        see.delete(prefix)


def test_no_traceback_shows_a_password_or_a_token(caplog: pytest.LogCaptureFixture) -> None:
    """With the variables of every frame, as an error page prints them."""
    with EtcdServer(auth="hunter2-secret") as server, FaultProxy(server.endpoint) as proxy:
        login = Config(endpoints=[proxy.endpoint], username="root", password="hunter2-secret")
        with Client(login) as client:
            put(client, "a")
            token = client.scope().engine.channel.metadata(False)[-1][1]
            proxy.refuse()
            proxy.reset()
            with pytest.raises(EtcdError) as failure:
                get(client, "a", 0.5)
            shown = everything_shown(failure.value)
        with Client(login) as client:
            with pytest.raises(EtcdError) as failure:
                get(client, "a", 0.5)
            shown += everything_shown(failure.value)
    assert "log in as 'root'" in shown
    assert "hunter2" not in shown
    assert str(token) not in shown


def everything_shown(error: BaseException) -> str:
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
