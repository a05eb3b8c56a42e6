"""What the cluster page reads of a real etcd: how many requests, ages, rights, outages."""

from __future__ import annotations

from collections.abc import Callable

from etcd_core import Client, Descriptor
from etcd_core.statuspage import collect, fragment
from etcd_core.statuspage.ages import Age
from etcd_core.statuspage.reading import MOST_LEASES
from etcd_core.testing import EtcdServer, eventually
from etcd_core.testing.counter import RpcCounter

MakeClient = Callable[..., Client]


def register(client: Client, count: int) -> None:
    for number in range(count):
        client.register(Descriptor(name="pay", id=f"pay-{number:03}", address=f"10.0.0.{number}:1"))


def test_sends_a_bounded_number_of_requests(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    counter = RpcCounter()
    writer = make_client(etcd_server.endpoint)
    reader = make_client(etcd_server.endpoint, interceptors=(counter,))
    register(writer, MOST_LEASES + 6)
    for number in range(3):
        writer.config_source(f"app-{number}").save({"a": {"b": 1}, "c": 2})
    with writer.lock("nightly"), counter.expect(Range=4, LeaseTimeToLive=MOST_LEASES):
        found = collect(reader)
    assert found.error is None
    assert len(found.services.items[0][1]) == MOST_LEASES + 6
    assert len(found.configs.items) == 3
    holder = found.locks.items[0].first.lease_id
    assert not found.leases[holder].late
    assert all(0 <= each.remaining <= each.granted for each in found.leases.values())


def test_knows_the_age_of_what_appeared_since_it_looks(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(etcd_server.endpoint)
    register(client, 1)
    collect(client)
    client.register(Descriptor(name="pay", id="young", address="10.0.0.9:1"))

    def ages() -> dict[str, Age | None]:
        found = collect(client)
        return {each.id: found.ages(each.created) for each in found.services.items[0][1]}

    seen = ages()
    old, young = seen["pay-000"], seen["young"]
    assert old is not None
    assert old.at_most is None
    assert young is not None
    assert young.exact


def test_shows_what_the_user_may_read(make_client: MakeClient, prefix: str) -> None:
    with EtcdServer(auth="rootpw") as server:
        for words in (
            ("role", "add", "app"),
            ("role", "grant-permission", "app", "read", f"{prefix}/services/", "--prefix"),
            ("user", "add", "app:apppw"),
            ("user", "grant-role", "app", "app"),
        ):
            server.ctl(*words)
        register(make_client(server.endpoint, username="root", password="rootpw"), 1)
        found = collect(make_client(server.endpoint, username="app", password="apppw"))
    assert found.error is None
    assert [name for name, _ in found.services.items] == ["pay"]
    assert "permission denied" in (found.configs.error or "")
    assert "permission denied" in fragment(found)
    assert "apppw" not in fragment(found)


def test_forgets_ages_of_a_store_that_was_reset(
    own_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(own_server.endpoint)
    register(client, 3)
    collect(client)
    own_server.restart(wipe=True)
    # The first answers may still belong to the connection that is being made again.
    found = eventually(lambda: (got := collect(client)).error is None and got, 20)
    assert found.revision < 10
    eventually(lambda: bool(collect(client).services.items), 20, message="registered again")
    later = collect(client)
    (_, members), *_ = later.services.items
    age = later.ages(members[0].created)
    assert age is not None
    assert age.at_least < 30


def test_an_outage_is_told_and_not_raised(own_server: EtcdServer, make_client: MakeClient) -> None:
    client = make_client(own_server.endpoint)
    own_server.kill()
    found = collect(client, timeout=1.0)
    assert "cannot be reached" in (found.error or "")
    assert found.prefix in fragment(found)
