"""ConfigSource on a real etcd: what is stored, what it costs, and what a watcher sees."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from etcd_core import (
    Client,
    ClosedError,
    Config,
    ConfigNotFound,
    ConfigSnapshot,
    ConfigSource,
    Conflict,
    ConnectionFailed,
    InvalidArgument,
    signals,
)
from etcd_core.testing import EtcdServer, RpcCounter, eventually

WAIT = 20.0


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(etcd_client: Client, counter: RpcCounter) -> Iterator[Client]:
    with Client(etcd_client.config, interceptors=[counter]) as client:
        client.config_source("warm-up").bootstrap({"a": 1})
        yield client


@pytest.fixture
def source(client: Client) -> ConfigSource:
    return client.config_source("app")


@pytest.fixture
def etcd(etcd_server: EtcdServer, client: Client) -> SimpleNamespace:
    """The store as others see it: by etcdctl."""
    prefix = f"{client.prefix}/config/app/"

    def stored() -> dict[str, str]:
        lines = etcd_server.ctl("get", "--prefix", prefix).splitlines()
        return {
            key.removeprefix(prefix): value
            for key, value in zip(lines[::2], lines[1::2], strict=True)
        }

    return SimpleNamespace(
        stored=stored,
        put=lambda path, value: etcd_server.ctl("put", prefix + path, value),
        delete=lambda path: etcd_server.ctl("del", prefix + path),
        clear=lambda: etcd_server.ctl("del", "--prefix", prefix),
    )


class Seen:
    """What a watcher was told."""

    def __init__(self) -> None:
        self._queue: queue.Queue[ConfigSnapshot] = queue.Queue()

    def __call__(self, snapshot: ConfigSnapshot) -> None:
        self._queue.put(snapshot)

    def next(self) -> ConfigSnapshot:
        return self._queue.get(timeout=WAIT)

    def until(self, revision: int) -> list[ConfigSnapshot]:
        seen = [self.next()]
        while seen[-1].revision < revision:
            seen.append(self.next())
        return seen

    @property
    def empty(self) -> bool:
        return self._queue.empty()


VALUES = {"server": {"host": "localhost", "port": 8080}, "debug": False, "hosts": ["a", "b"]}


# -- load and save -----------------------------------------------------------------------------


def test_save_then_load(source, etcd):
    revision = source.save(VALUES)
    config = source.load()
    assert config.nested() == VALUES
    assert config.revision == revision
    assert config["server.port"] == 8080
    assert etcd.stored() == {
        "server.host": "localhost",
        "server.port": "8080",
        "debug": "false",
        "hosts": "[a, b]",
    }


def test_without_a_time_limit(source):
    source.save({"a": 1}, timeout=None)
    config = source.load(timeout=None)
    assert source.save({"a": 2}, expect=config, timeout=None) == config.revision + 1


def test_nothing_stored_is_not_an_empty_config(source):
    with pytest.raises(ConfigNotFound, match="'app'"):
        source.load()


def test_unreachable_is_not_an_empty_config():
    with (
        Client(endpoints=["127.0.0.1:1"], timeout=0.3) as client,
        pytest.raises(ConnectionFailed),
    ):
        client.config_source().load()


def test_save_replaces_the_whole(source, etcd):
    source.save(VALUES)
    source.save({"server.port": 9090, "DATABASES": {"default": {"NAME": "x"}}})
    assert etcd.stored() == {"server.port": "9090", "databases.default": "{NAME: x}"}


@pytest.mark.parametrize(
    "value", ["text\n", "", {}, [], None, "on", "1_000", 1.5, True, {"X.y": 1}, b"\0\xff", "ü"]
)
def test_values_round_trip(source, value):
    source.save({"a": value})
    assert source.load()["a"] == value


def test_only_what_differs_is_written(client, source):
    first = source.save(VALUES)
    second = source.save({**VALUES, "debug": True})
    entries = source.load()._view.entries.values()
    revisions = {entry.key.rpartition(b"/")[2].decode(): entry.mod_revision for entry in entries}
    assert revisions == {
        "debug": second,
        "server.host": first,
        "server.port": first,
        "hosts": first,
    }


def test_requests(client, source, counter):
    with counter.expect(Range=1, Txn=1):
        source.save(VALUES)
    with counter.expect(Range=1):
        config = source.load()
    with counter.expect(Txn=1):
        source.save({**VALUES, "debug": True}, expect=config)
    with counter.expect(Range=1):
        config = source.load()
    with counter.expect(Txn=1):
        source.update({"debug": False}, expect=config)
    with counter.expect(Range=1, Txn=1):
        source.update({"debug": True})


def test_no_op_save_writes_no_revision(client, source, counter):
    revision = source.save(VALUES)
    config = source.load()
    with counter.expect(Range=1):
        assert source.save(VALUES) == revision
    with counter.expect(Txn=1):
        assert source.save(config.nested(), expect=config) == revision
    with counter.expect(Range=1):
        assert source.update({"server": {"port": 8080}}, delete=["absent"]) == revision
    assert source.load().revision == revision


def test_another_spelling_of_the_same_value_is_left_alone(source, etcd):
    etcd.put("name", "'x'")
    etcd.put("ratio", "1e3")
    config = source.load()
    assert source.save(config) == config.revision
    assert etcd.stored() == {"name": "'x'", "ratio": "1e3"}


def test_an_empty_config_must_be_meant(source, etcd):
    source.save(VALUES)
    with pytest.raises(InvalidArgument, match="allow_empty"):
        source.save({})
    assert len(source.load()) == 4
    source.save({}, allow_empty=True)
    assert etcd.stored() == {}


def test_one_bad_leaf_does_not_hide_the_others(source, etcd):
    source.save(VALUES)
    etcd.put("server.port", "[8080")
    config = source.load()
    assert list(config.errors) == ["server.port"]
    assert config.nested()["server"] == {"host": "localhost"}
    source.update({"server.port": 1})
    assert not source.load().errors


def test_a_config_below_another_is_left_alone(client, source):
    below = client.config_source("app/eu")
    below.save({"port": 2})
    assert source.bootstrap({"port": 1})
    assert not source.bootstrap({"port": 3})
    source.save({"port": 4})
    source.save({}, allow_empty=True)
    assert dict(below.load()) == {"port": 2}
    with pytest.raises(ConfigNotFound):
        source.load()


def test_a_key_in_upper_case_is_replaced_by_its_canonical_form(source, etcd):
    etcd.put("Server.Port", "1")
    assert dict(source.load()) == {"server.port": 1}
    source.update({"server.port": 2})
    assert etcd.stored() == {"server.port": "2"}


# -- conflicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("others_do", ["edit", "add", "delete", "clear"])
@pytest.mark.parametrize("changed", [True, False])
def test_save_over_a_changed_config_is_a_conflict(source, etcd, others_do, changed):
    source.save(VALUES)
    config = source.load()
    if others_do == "edit":
        etcd.put("debug", "true")
    elif others_do == "add":
        etcd.put("extra", "1")
    elif others_do == "delete":
        etcd.delete("hosts")
    else:
        etcd.clear()
    before = etcd.stored()
    with pytest.raises(Conflict):
        source.save({**VALUES, "server": {"port": 1}} if changed else VALUES, expect=config)
    assert etcd.stored() == before


def test_expecting_nothing_stored(source, etcd):
    seen = Seen()
    with source.watch(seen):
        nothing = seen.next()
    assert not nothing.exists
    source.save({"a": 1}, expect=nothing)
    with pytest.raises(Conflict):
        source.save({"a": 2}, expect=nothing)
    assert etcd.stored() == {"a": "1"}


def test_update_conflicts_on_its_own_paths_only(source, etcd):
    source.save(VALUES)
    config = source.load()
    etcd.put("debug", "true")
    etcd.put("extra", "1")
    source.update({"server.port": 1}, expect=config)
    with pytest.raises(Conflict):
        source.update({"server.port": 2}, expect=config)
    with pytest.raises(Conflict):
        source.update({"extra": 2}, expect=config)
    with pytest.raises(Conflict):
        source.update({}, delete=["debug"], expect=config)
    assert etcd.stored()["server.port"] == "1"


def test_deleting_a_table_conflicts_with_additions_to_it(source, etcd):
    source.save(VALUES)
    config = source.load()
    etcd.put("server.tls", "true")
    with pytest.raises(Conflict):
        source.update({}, delete=["server"], expect=config)
    assert "server.port" in etcd.stored()


def test_save_over_many_leaves_tells_of_deletions(source, etcd, caplog):
    many = {f"k{i:03}": i for i in range(300)}
    source.save(many)
    config = source.load()
    etcd.delete("k299")
    # Nothing to write: what is found can still be refused.
    with pytest.raises(Conflict):
        source.save(many, expect=config)
    source.save({**many, "k000": -1}, expect=config)
    assert "k299" in caplog.text
    # Without a snapshot the outcome is exact in any case.
    source.save(many)
    assert dict(source.load()) == many


def test_update_keeps_and_deletes(source, etcd):
    source.save(VALUES)
    source.update({"server": {"port": 1}}, delete=["hosts", "absent"])
    assert source.load().nested() == {"server": {"host": "localhost", "port": 1}, "debug": False}
    # A table is replaced by deleting it in the same write.
    source.update({"server.port": 2}, delete=["server"])
    assert source.load().nested() == {"server": {"port": 2}, "debug": False}
    source.update({}, delete=["server", "debug"])
    assert etcd.stored() == {}


def test_update_refuses_a_value_above_other_leaves(source, etcd):
    source.save(VALUES)
    before = etcd.stored()
    with pytest.raises(InvalidArgument, match="'server'"):
        source.update({"server": 1})
    with pytest.raises(InvalidArgument, match="'debug'"):
        source.update({"debug.level": 1})
    assert etcd.stored() == before
    source.update({"server": 1}, delete=["server"])
    source.update({"debug.level": 1}, delete=["debug"])
    assert source.load().nested() == {"server": 1, "debug": {"level": 1}, "hosts": ["a", "b"]}


def test_bootstrap_is_create_only(source, counter):
    with counter.expect(Range=1, Txn=1):
        assert source.bootstrap(VALUES) is True
    with counter.expect(Range=1):
        assert source.bootstrap({"other": 1}) is False
    assert source.load().nested() == VALUES


# -- watch -------------------------------------------------------------------------------------


def test_the_state_first_then_every_change(source, etcd):
    source.save(VALUES)
    seen = Seen()
    with source.watch(seen):
        first = seen.next()
        assert (first.cause, first.nested()) == ("initial", VALUES)
        revision = source.save({"a": 1, "b": 2, "c": 3})
        second = seen.next()
        assert (second.cause, second.revision) == ("change", revision)
        assert dict(second) == {"a": 1, "b": 2, "c": 3}
        assert second.diff(first).added == {"a", "b", "c"}
        etcd.clear()
        third = seen.next()
        assert (third.exists, third.cause, len(third)) == (False, "change", 0)
        source.save({"a": 1})
        assert dict(seen.next()) == {"a": 1}
    assert seen.empty


def test_one_delivery_per_save_of_any_size(source):
    seen = Seen()
    with source.watch(seen):
        assert not seen.next().exists
        for count in (1000, 999, 5000):
            revision = source.save({f"k{i}": count for i in range(count)})
            assert [len(config) for config in seen.until(revision)] == [count]


def test_a_write_of_the_same_bytes_is_no_change(source, etcd):
    source.save(VALUES)
    seen = Seen()
    with source.watch(seen):
        seen.next()
        etcd.put("debug", "false")
        etcd.put("other/debug", "false")
        etcd.put("debug", "true")
        assert seen.next()["debug"] is True


def test_since_skips_the_first_call_and_misses_nothing(client, source, counter):
    source.save(VALUES)
    config = source.load()
    source.update({"debug": True})
    seen = Seen()
    counter.reset()
    with source.watch(seen, since=config):
        change = seen.next()
        assert (change.cause, change["debug"]) == ("change", True)
        assert counter.counts.get("Range", 0) == 0
        source.update({"debug": False})
        assert seen.next()["debug"] is False
    assert seen.empty


def test_since_a_snapshot_of_another_client(etcd_client, client, source):
    source.save(VALUES)
    config = etcd_client.config_source("app").load()
    seen = Seen()
    with source.watch(seen, since=config):
        source.update({"debug": True})
        assert seen.next()["debug"] is True
    with source.watch(seen, since=config):
        change = seen.next()
        assert (change.cause, change.diff(config).changed) == ("resync", {"debug"})
    assert seen.empty


def test_since_a_compacted_revision(client, source, etcd_server):
    source.save(VALUES)
    config = source.load()
    source.update({"debug": True})
    revision = source.update({}, delete=["hosts"])
    etcd_server.ctl("compaction", str(revision))
    seen = Seen()
    with source.watch(seen, since=config):
        change = seen.next()
    assert change.cause == "resync"
    diff = change.diff(config)
    assert (diff.changed, diff.added, diff.removed) == ({"debug"}, set(), {"hosts"})


def test_signal(source):
    source.save(VALUES)
    told: queue.Queue[dict[str, object]] = queue.Queue()

    def receiver(sender: object, **payload: object) -> None:
        told.put({"sender": sender, **payload})

    seen = Seen()
    with signals.config_changed.connected_to(receiver), source.watch(seen):
        old = seen.next()
        revision = source.update({"debug": True, "extra": 1}, delete=["hosts"])
        payload = told.get(timeout=WAIT)
    assert payload["sender"] is source
    assert (payload["changed"], payload["added"], payload["removed"]) == (
        {"debug"},
        {"extra"},
        {"hosts"},
    )
    assert payload["old"] is old
    assert payload["new"] is seen.next()
    assert payload["revision"] == revision
    assert told.empty()


def test_a_callback_that_raises_stops_nothing(source, caplog):
    seen = Seen()

    def failing(config: ConfigSnapshot) -> None:
        seen(config)
        raise ValueError("boom")

    with source.watch(failing):
        seen.next()
        source.save({"a": 1})
        assert dict(seen.next()) == {"a": 1}
        source.save({"a": 2})
        assert dict(seen.next()) == {"a": 2}
    assert "boom" in caplog.text


def test_the_end_of_a_watch(client, source):
    seen = Seen()
    hub = client.scope().engine.hub
    with source.watch(seen) as subscription:
        seen.next()
        assert hub.count == 1
    assert subscription.cancelled
    assert hub.count == 0
    source.save({"a": 1})
    assert seen.empty
    other = source.watch(seen)
    seen.next()
    client.close()
    assert other.cancelled
    for call in (source.load, lambda: source.save({"a": 1}), lambda: source.watch(seen)):
        with pytest.raises(ClosedError):
            call()


def test_watch_survives_an_outage():
    seen = Seen()
    with EtcdServer() as server, Client(Config([server.endpoint], prefix="/p")) as client:
        source = client.config_source()
        source.save({"a": 1})
        with source.watch(seen):
            seen.next()
            server.kill()
            server.start()
            # etcd answers, so the client's next write may still meet the old connection.
            eventually(lambda: source.save({"a": 2}, timeout=2), WAIT)
            assert [dict(config) for config in seen.until(3)] == [{"a": 2}]


def test_a_reset_of_the_store_is_told():
    seen = Seen()
    with EtcdServer() as server, Client(Config([server.endpoint], prefix="/p")) as client:
        source = client.config_source()
        for i in range(5):
            source.save({"a": i})
        config = source.load()
        with source.watch(seen):
            seen.next()
            server.restart(wipe=True)
            after = seen.next()
            assert (after.cause, after.exists) == ("reset", False)
            source.save({"a": 9})
            assert dict(seen.next()) == {"a": 9}
        with pytest.raises(Conflict, match="reset"):
            source.save({"a": 1}, expect=config)
