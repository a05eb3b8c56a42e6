"""Authentication: tokens that expire, refusals, and passwords that change under a client."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkers import BRIEF_TOKENS, CHEAP_LOGINS, WatchLog, let_the_token_expire
from etcd_core import Client, Config
from etcd_core.engine import Engine
from etcd_core.errors import EtcdError, PermissionDenied, Unauthenticated
from etcd_core.keys import prefix_range_end
from etcd_core.mirror import Mirror
from etcd_core.testing import EtcdServer, RpcCounter, eventually
from etcd_core.watch import Watch
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT, RANGE

ROOT = "correct-horse"


@pytest.fixture(scope="module")
def brief() -> Iterator[EtcdServer]:
    """Tokens live for one second."""
    with EtcdServer(auth=ROOT, flags=list(BRIEF_TOKENS)) as server:
        yield server


@pytest.fixture(scope="module")
def with_app() -> Iterator[EtcdServer]:
    """With a user ``app`` that may do everything under ``/app/``."""
    with EtcdServer(auth=ROOT, flags=[CHEAP_LOGINS]) as server:
        add_app(server)
        yield server


@pytest.fixture
def guarded(with_app: EtcdServer) -> Iterator[EtcdServer]:
    """The same, where the password is ``first``."""
    yield with_app
    with_app.ctl("del", "--prefix", "/app/")
    set_password(with_app, "first")


def add_app(server: EtcdServer) -> None:
    server.ctl("user", "add", "app", "--interactive=false", input="first\n")
    server.ctl("role", "add", "app")
    server.ctl("role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/")
    server.ctl("user", "grant-role", "app", "app")


def set_password(server: EtcdServer, password: str) -> None:
    server.ctl("user", "passwd", "app", "--interactive=false", input=f"{password}\n")


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


def client_of(
    server: EtcdServer, counter: RpcCounter, user: str = "root", password: str = ROOT
) -> Client:
    config = Config([server.endpoint], username=user, password=password)
    return Client(config, interceptors=[counter])


def put(client: Client, key: str, value: str = "v") -> int:
    request = pb.PutRequest(key=key.encode(), value=value.encode())
    channel = client.scope().engine.channel
    return channel.unary(PUT, request, what=f"put {key!r}").header.revision


def get(client: Client, key: str) -> bytes | None:
    channel = client.scope().engine.channel
    answer = channel.unary(RANGE, pb.RangeRequest(key=key.encode()), what=f"get {key!r}")
    return answer.kvs[0].value if answer.kvs else None


def follow(engine: Engine, prefix: str, log: WatchLog, start: int = 0) -> Watch:
    key = prefix.encode()
    return engine.hub.watch(key, log, range_end=prefix_range_end(key), start_revision=start)


@pytest.mark.slow
def test_f36_an_expired_token_is_refreshed_once(brief: EtcdServer, counter: RpcCounter) -> None:
    with client_of(brief, counter) as client:
        engine = client.scope().engine
        old = WatchLog()
        start = put(client, "/f36/a")
        follow(engine, "/f36/", old, start)
        old.wait_revision(start)
        lease = engine.keeper.grant(20, what="grant")
        assert counter.counts["Authenticate"] == 1
        let_the_token_expire(brief, client)

        # One refresh for any number of threads that need it at once.
        failures: list[EtcdError] = []
        together = threading.Barrier(32)

        def read() -> None:
            together.wait(20)
            try:
                get(client, "/f36/a")
            except EtcdError as exc:
                failures.append(exc)

        threads = [threading.Thread(target=read) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert counter.counts["Authenticate"] == 2
        assert lease.alive()
        last = put(client, "/f36/b")
        old.wait_revision(last)
        assert old.error is None


@pytest.mark.slow
def test_f36_a_new_watch_on_a_stream_with_an_expired_token(
    brief: EtcdServer, counter: RpcCounter
) -> None:
    """3.5.1 answers `permission denied` there, as if the user might not read: it is the token."""
    with client_of(brief, counter) as client:
        engine = client.scope().engine
        old, new = WatchLog(), WatchLog()
        start = put(client, "/f36w/a")
        follow(engine, "/f36w/", old, start)
        old.wait_revision(start)
        let_the_token_expire(brief, client)
        follow(engine, "/f36w/", new, start)
        new.wait_revision(start)
        assert counter.counts["Authenticate"] == 2
        last = put(client, "/f36w/b")
        for log in (old, new):
            log.wait_revision(last)
            assert log.error is None
            assert [e.revision for e in log.events] == [start, last]


@pytest.mark.slow
def test_f36_recipes_after_an_idle_time(brief: EtcdServer, counter: RpcCounter) -> None:
    with client_of(brief, counter) as client:
        client.lock("first", ttl=20).unlock()
        # A TTL of which there is a spare lease, and one that takes a grant.
        for refreshed, ttl in enumerate((20, 30), start=2):
            let_the_token_expire(brief, client)
            with client.lock("f36", ttl=ttl, timeout=10) as lock:
                assert lock.held
            assert counter.counts["Authenticate"] == refreshed
        assert counter.counts["LeaseGrant"] >= 2


def test_f37_a_refused_watch_beside_a_live_one(guarded: EtcdServer, counter: RpcCounter) -> None:
    """On 3.5.1 the refusal carries watch id 0 and kills a live watch of that id, silently."""
    with client_of(guarded, counter, "app", "first") as client:
        engine = client.scope().engine
        live = WatchLog()
        start = put(client, "/app/a", "1")
        follow(engine, "/app/", live, start)
        live.wait_revision(start)
        for _ in range(3):
            refused = WatchLog()
            follow(engine, "/forbidden/", refused)
            refused.wait(lambda log: log.error)
            assert isinstance(refused.error, PermissionDenied)
            assert "for user 'app'" in str(refused.error)
            assert "/forbidden/" in str(refused.error)
            last = put(client, "/app/a", "2")
            live.wait_revision(last)
        assert live.error is None
        revisions = [e.revision for e in live.events]
        assert revisions == sorted(set(revisions))
        assert len(revisions) == 4


def test_f37_a_refused_unary_call_is_final(guarded: EtcdServer, counter: RpcCounter) -> None:
    with client_of(guarded, counter, "app", "first") as client:
        with pytest.raises(PermissionDenied, match=r"put '/forbidden/a'.*for user 'app'"):
            put(client, "/forbidden/a")
        assert counter.counts == {"Authenticate": 1, "Put": 1}


def test_f38_a_wrong_password(
    guarded: EtcdServer, counter: RpcCounter, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "etcd_core"),
        client_of(guarded, counter, "app", "hunter2") as client,
    ):
        started = time.monotonic()
        with pytest.raises(Unauthenticated, match="log in as 'app'") as failure:
            get(client, "/app/a")
        assert time.monotonic() - started < 5
        assert counter.counts == {"Authenticate": 1}, "each try costs the server a bcrypt"
        assert "hunter2" not in str(failure.value)
        assert not failure.value.retryable
    assert "hunter2" not in caplog.text


@pytest.mark.slow
def test_f38_the_password_changes_under_the_client(
    guarded: EtcdServer, counter: RpcCounter, caplog: pytest.LogCaptureFixture
) -> None:
    with client_of(guarded, counter, "app", "first") as client:
        engine = client.scope().engine
        start = put(client, "/app/a", "1")
        live = WatchLog()
        follow(engine, "/app/", live, start)
        mirror = Mirror(engine, b"/app/", b"/app0", "follow '/app/'")
        mirror.start()
        live.wait_revision(start)
        set_password(guarded, "second")
        with pytest.raises(Unauthenticated, match="app"):
            get(client, "/app/a")
        # A live watch outlives its token; a new one is refused and says so.
        guarded.ctl("put", "/app/a", "2")
        live.wait(lambda log: len(log.events) == 2)
        new = WatchLog()
        follow(engine, "/app/", new, start)
        new.wait(lambda log: log.error)
        assert isinstance(new.error, Unauthenticated)
        before = counter.counts["Authenticate"]
        guarded.ctl("put", "/app/a", "3")
        live.wait(lambda log: len(log.events) == 3)
        assert counter.counts["Authenticate"] - before <= 2, "no loop"
        set_password(guarded, "first")
        assert get(client, "/app/a") == b"3"
        guarded.ctl("put", "/app/a", "4")
        live.wait(lambda log: len(log.events) == 4, 20)
        eventually(lambda: mirror.view.entries[b"/app/a"].value == b"4", 20)
        assert live.error is None
        mirror.close()
    assert "first" not in caplog.text


@pytest.mark.slow
def test_f38_watches_wait_for_a_login_that_works(
    guarded: EtcdServer, counter: RpcCounter, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream cannot even be opened: asked rarely, said once, live when the login works."""
    with (
        caplog.at_level(logging.WARNING, "etcd_core"),
        client_of(guarded, counter, "app", "second") as client,
    ):
        log = WatchLog()
        follow(client.scope().engine, "/app/", log)
        eventually(lambda: "wait for a working login" in caplog.text)
        set_password(guarded, "second")
        log.wait_created(timeout=30)
        assert counter.counts["Authenticate"] <= 4
    assert caplog.text.count("wait for a working login") == 1


@pytest.mark.slow
def test_f39_authentication_is_enabled_and_disabled_while_running(counter: RpcCounter) -> None:
    with EtcdServer(flags=[CHEAP_LOGINS]) as server, client_of(server, counter) as client:
        engine = client.scope().engine
        log = WatchLog()
        start = put(client, "/f39/a", "open")
        follow(engine, "/f39/", log, start)
        log.wait_revision(start)
        lease = engine.keeper.grant(10, what="grant")
        server.enable_auth(ROOT)
        # The stream is older than authentication, and goes on [measured].
        last = put(client, "/f39/a", "enabled")
        assert get(client, "/f39/a") == b"enabled"
        log.wait_revision(last)
        late = WatchLog()
        follow(engine, "/f39/", late, start)
        late.wait_revision(last)
        server.disable_auth()
        # 3.5.1 refuses the stale token even now: it must be dropped.
        last = put(client, "/f39/a", "disabled")
        for each in (log, late):
            each.wait_revision(last)
            assert each.error is None
        newest = WatchLog()
        follow(engine, "/f39/", newest, start)
        newest.wait_revision(last)
        assert lease.alive()
        server.enable_auth(ROOT)
        assert get(client, "/f39/a") == b"disabled"


def test_f39_a_client_without_a_user_is_told(counter: RpcCounter) -> None:
    with (
        EtcdServer(flags=[CHEAP_LOGINS]) as server,
        Client(Config([server.endpoint]), interceptors=[counter]) as client,
    ):
        put(client, "/f39/a")
        server.enable_auth(ROOT)
        with pytest.raises(Unauthenticated):
            get(client, "/f39/a")
        refused = WatchLog()
        follow(client.scope().engine, "/f39/", refused)
        refused.wait(lambda log: log.error)
        assert isinstance(refused.error, (PermissionDenied, Unauthenticated))
        assert "Authenticate" not in counter.counts


@pytest.fixture
def signing_keys(tmp_path: Path) -> str:
    private, public = tmp_path / "jwt.key", tmp_path / "jwt.pub"
    run = ["openssl", "genrsa", "-out", str(private), "2048"]
    try:
        subprocess.run(run, check=True, capture_output=True)
        run = ["openssl", "rsa", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(run, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"


def test_f40_jwt_tokens_age_with_the_auth_store(signing_keys: str, counter: RpcCounter) -> None:
    """Any change to users makes every JWT too old; the next request refreshes it."""
    with (
        EtcdServer(auth=ROOT, flags=[signing_keys, CHEAP_LOGINS]) as server,
        client_of(server, counter) as client,
    ):
        engine = client.scope().engine
        log = WatchLog()
        start = put(client, "/f40/a", "1")
        follow(engine, "/f40/", log, start)
        log.wait_revision(start)
        for number in range(3):
            server.ctl("user", "add", f"user{number}", "--interactive=false", input="x\n")
            if number % 2:
                assert get(client, "/f40/a") is not None
            else:
                put(client, "/f40/a", str(number))
            new = WatchLog()
            follow(engine, "/f40/", new, start)
            new.wait_revision(start)
            assert new.error is None
        last = put(client, "/f40/a", "end")
        log.wait_revision(last)
        assert log.error is None
        revisions = [e.revision for e in log.events]
        assert revisions == sorted(set(revisions))
        assert counter.counts["Authenticate"] <= 1 + 2 * 3
