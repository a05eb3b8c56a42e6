"""Elections on a real etcd: E1 to E8 without faults."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from etcd_core import (
    CampaignTimeout,
    Candidate,
    Client,
    ClosedError,
    Descriptor,
    Election,
    InvalidArgument,
    NotLeader,
    OutcomeUnknown,
    RequestTimeout,
    signals,
)
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(
    etcd_server: EtcdServer, make_client: Callable[..., Client], counter: RpcCounter
) -> Client:
    return make_client(etcd_server.endpoint, interceptors=(counter,))


def test_campaign_resign(client: Client, etcd_server: EtcdServer, prefix: str) -> None:
    election = client.campaign("boss", "node-1")
    assert election.is_leader
    assert (election.key, election.identity) == ("boss", "node-1")
    assert election.etcd_key.startswith(f"{prefix}/elections/boss/")
    assert etcd_server.ctl("get", "--print-value-only", election.etcd_key).strip() == "node-1"
    assert client.leader("boss") == election.leader() == "node-1"
    election.resign()
    election.resign()
    assert not election.is_leader
    assert election.done.is_set()
    assert client.leader("boss") is None


def test_warm_campaign_costs_one_request(client: Client, counter: RpcCounter) -> None:
    client.campaign("boss", "x").resign()
    with counter.expect(Txn=2):
        client.campaign("boss", "x").resign()
    with counter.expect(Range=1):
        assert client.leader("boss") is None


def test_next_in_line_leads(client: Client) -> None:
    first = client.campaign("boss", "one")
    won = []
    thread = threading.Thread(target=lambda: won.append(client.campaign("boss", "two")))
    thread.start()
    with pytest.raises(CampaignTimeout, match=r"not won within 0\.2 s"):
        client.campaign("boss", "three", timeout=0.2)
    first.resign()
    thread.join(10)
    assert client.leader("boss") == "two"
    assert won[0].token > first.token
    won[0].resign()


def test_proclaim(client: Client) -> None:
    with client.campaign("boss", "one") as election:
        token = election.token
        election.proclaim("uno")
        election.proclaim("eins")
        assert client.leader("boss") == election.identity == "eins"
        assert election.token == token
        assert election.is_leader
    with pytest.raises(NotLeader, match="resigned"):
        election.proclaim("late")
    assert client.leader("boss") is None


def test_proclaim_after_deletion_does_not_recreate(client: Client) -> None:
    election = client.campaign("boss", "one")
    client.raw.delete(election.etcd_key)
    with pytest.raises(NotLeader):
        election.proclaim("two")
    assert client.leader("boss") is None
    election.resign()


@pytest.mark.parametrize("how", ["deleted", "overwritten", "detached"])
def test_interference_ends_the_leadership(client: Client, how: str) -> None:
    lost: list[str] = []

    def on_lost(election: object, *, reason: str, **_: object) -> None:
        lost.append(reason)

    with signals.leadership_lost.connected_to(on_lost):
        election = client.campaign("boss", "one")
        lease = election._ownership.lease.id
        if how == "deleted":
            client.raw.delete(election.etcd_key)
        elif how == "overwritten":
            client.raw.put(election.etcd_key, "thief", lease=lease)
        else:
            client.raw.put(election.etcd_key, "one")
        assert election.done.wait(10)
        assert not election.is_leader
        assert election.lost_reason == how
        eventually(lambda: lost == [how])
        election.resign()
    assert client.leader("boss") is None


def test_lost_elections_are_not_collected_until_the_close(
    client: Client, etcd_server: EtcdServer
) -> None:
    """A program may campaign again after each loss, and resign from none."""
    for _ in range(3):
        election = client.campaign("boss", "one")
        client.raw.put(election.etcd_key, "thief")
        assert election.done.wait(10)
        key, gone = election.etcd_key, weakref.ref(election)
        del election

        def is_gone(gone: weakref.ref[Election] = gone) -> bool:
            gc.collect()
            return gone() is None

        eventually(is_gone)
        # What the thief left would stand before every later leader.
        eventually(lambda key=key: client.raw.get(key)[0] is None)
    # None but the spare one is renewed.
    eventually(lambda: client.scope().engine.keeper.vitals().count <= client.config.lease_pool)

    kept = client.campaign("boss", "two")
    client.raw.put(kept.etcd_key, "thief")
    assert kept.done.wait(10)
    client.close()
    assert etcd_server.ctl("get", kept.etcd_key) == ""


def test_observe(client: Client) -> None:
    with client.observe("boss") as leaders:
        assert leaders.next(5) is None
        with client.campaign("boss", "one") as election:
            assert leaders.next(5) == "one"
            election.proclaim("uno")
            assert leaders.next(5) == "uno"
        assert leaders.next(5) is None
        with pytest.raises(RequestTimeout):
            leaders.next(0.05)
        # A nested name is another election.
        with client.campaign("boss/deputy", "two"), pytest.raises(RequestTimeout):
            leaders.next(0.3)


def test_observe_starts_with_the_leader_and_ends_on_close(client: Client) -> None:
    seen: list[str | None] = []
    with client.campaign("boss", "one"):
        watch = client.observe("boss")
        thread = threading.Thread(target=lambda: seen.extend(watch))
        thread.start()
        eventually(lambda: seen == ["one"])
        watch.close()
        thread.join(5)
        assert not thread.is_alive()
        with pytest.raises(ClosedError):
            watch.next(1)


def test_a_watch_is_an_iterator(client: Client) -> None:
    with client.observe("boss") as leaders:
        assert next(leaders) is None
        with client.campaign("boss", "one"):
            assert next(leaders) == "one"
        assert next(leaders) is None
        leaders.close()
        assert list(leaders) == []


def test_leader_of_nested_name(client: Client) -> None:
    with client.campaign("boss/deputy", "two"):
        assert client.leader("boss") is None
        with client.campaign("boss", "one"):
            assert client.leader("boss") == "one"
            assert client.leader("boss/deputy") == "two"


def test_candidate_leads_and_leads_again_after_a_loss(
    client: Client, etcd_server: EtcdServer
) -> None:
    with client.candidate("boss", "one") as candidate:
        assert candidate.wait(10)
        first = candidate.term
        assert first is not None
        assert candidate.is_leader_for(1.0)
        assert not candidate.is_leader_for(60.0)
        etcd_server.ctl("lease", "revoke", f"{candidate._election._ownership.lease.id:x}")
        assert first.lost.wait(20)
        assert eventually(lambda: candidate.term and candidate.term.token > first.token)
    assert not candidate.is_leader
    assert client.leader("boss") is None


@pytest.mark.parametrize("how", ["overwritten", "detached", "deleted"])
def test_candidate_leads_again_after_interference(client: Client, how: str) -> None:
    with client.candidate("boss", "one") as candidate:
        assert candidate.wait(10)
        election = candidate._election
        term = candidate.term
        assert election is not None
        assert term is not None
        if how == "deleted":
            client.raw.delete(election.etcd_key)
        else:
            lease = election._ownership.lease.id if how == "overwritten" else None
            client.raw.put(election.etcd_key, "intruder", lease=lease)
        assert term.lost.wait(10)
        eventually(lambda: candidate.term and candidate.term.token > term.token)
        assert client.leader("boss") == "one"


def test_proclaim_goes_on_after_a_lost_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client.campaign("boss", "one") as election:
        channel = client.scope().engine.channel
        unary = channel.unary

        def lose_the_answer(*args: object, **kwargs: object) -> object:
            unary(*args, **kwargs)
            raise OutcomeUnknown("the answer was lost")

        monkeypatch.setattr(channel, "unary", lose_the_answer)
        with pytest.raises(OutcomeUnknown):
            election.proclaim("two")
        monkeypatch.undo()
        election.proclaim("three")
        assert client.leader("boss") == election.identity == "three"


def test_candidates_take_over(
    client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client]
) -> None:
    other = make_client(etcd_server.endpoint)
    first = client.candidate("boss", "one")
    assert first.wait(10)
    second = other.candidate("boss", "two")
    assert second.wait_for_answer(10)
    assert not second.is_leader
    assert second.term is None
    first.close()
    assert second.wait(10)
    assert client.leader("boss") == "two"
    second.close()
    second.close()
    assert client.leader("boss") is None


def test_candidate_that_waits_can_be_closed(client: Client, prefix: str) -> None:
    with client.campaign("boss", "one"):
        candidate = client.candidate("boss", "two")
        assert candidate.wait_for_answer(10)
        candidate.close()
        assert not candidate._thread.is_alive()
        assert len(list(client.raw.get_prefix(f"{prefix}/elections/"))) == 1


def test_acquired_and_lost_signals(client: Client) -> None:
    told: list[tuple[str, str]] = []

    def on_acquired(election: object, *, identity: str, **_: object) -> None:
        told.append(("acquired", identity))

    def on_lost(election: object, *, reason: str, **_: object) -> None:
        told.append(("lost", reason))

    with (
        signals.leadership_acquired.connected_to(on_acquired),
        signals.leadership_lost.connected_to(on_lost),
    ):
        client.campaign("boss", "one").resign()
        eventually(lambda: told == [("acquired", "one"), ("lost", "resigned")])


@pytest.mark.parametrize("key", ["", "//", 7])
def test_bad_keys(client: Client, key: str) -> None:
    for call in (
        lambda: client.campaign(key, "x"),
        lambda: client.candidate(key, "x"),
        lambda: client.leader(key),
        lambda: client.observe(key),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_bad_identity(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="identity"):
        client.campaign("boss", 5)  # type: ignore[arg-type]


def test_an_overwritten_key_is_noticed_after_a_compaction(
    etcd_server: EtcdServer, prefix: str
) -> None:
    """The watch that would have told was away, and what it missed is compacted."""
    with (
        FaultProxy(etcd_server.endpoint) as proxy,
        Client(endpoints=[proxy.endpoint], prefix=prefix) as client,
    ):
        election = client.campaign("e", "me", ttl=30)
        guarded = WatchCount(client)
        eventually(lambda: guarded.count == 1, message="the guard watches")
        proxy.refuse()
        proxy.reset()
        etcd_server.ctl("put", "--ignore-lease", election.etcd_key, "impostor")
        revision = etcd_server.ctl("put", f"{prefix}/x", "1", "-w", "json")
        etcd_server.ctl("compact", str(json.loads(revision)["header"]["revision"]))
        proxy.heal()
        assert election.done.wait(20)
        assert election.lost_reason == "overwritten"


class WatchCount:
    """How many watches etcd serves to a client."""

    def __init__(self, client: Client) -> None:
        self._hub = client.scope().engine.hub

    @property
    def count(self) -> int:
        return sum(watch.down_since is None for watch in list(self._hub._watches.values()))


def test_many_proclamations_are_not_all_remembered(client: Client) -> None:
    with client.campaign("e", "0") as election:
        for number in range(50):
            election.proclaim(str(number))
        assert election._ownership.values == {b"49"}
        assert client.leader("e") == "49"
        # The guard's watch starts late and meets all of them: none is somebody else's.
        assert not election.done.wait(1.0)


@pytest.mark.parametrize("kind", ["lock", "election", "candidacy", "registration"])
def test_leaving_a_block_keeps_the_error_of_the_body(
    kind: str, prefix: str, proxy: FaultProxy
) -> None:
    with Client(endpoints=[proxy.endpoint], prefix=prefix, timeout=1.0) as client:
        make: dict[str, Callable[[], AbstractContextManager[object]]] = {
            "lock": lambda: client.lock("a"),
            "election": lambda: client.campaign("a", "me"),
            "candidacy": lambda: client.candidate("a"),
            "registration": lambda: client.register(Descriptor(name="a", id="1", address="h:1")),
        }
        entered = make[kind]()
        if isinstance(entered, Candidate):
            assert entered.wait(10)

        def run() -> None:
            with entered:
                proxy.refuse()
                proxy.reset()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run()
