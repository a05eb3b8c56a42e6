"""Discovery on a real etcd: D1 to D9, views and subscriptions."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable

import pytest

from etcd_core import (
    Client,
    ClosedError,
    Descriptor,
    InvalidArgument,
    NoInstances,
    ServiceEvent,
    ServiceView,
    signals,
)
from etcd_core.testing import EtcdServer, RpcCounter, eventually
from registrations import descriptor
from witness import revision


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(
    etcd_server: EtcdServer, make_client: Callable[..., Client], counter: RpcCounter
) -> Client:
    return make_client(etcd_server.endpoint, interceptors=(counter,))


class Store:
    """Writes instances as any other client would."""

    def __init__(self, server: EtcdServer, prefix: str) -> None:
        self._server = server
        self._prefix = f"{prefix}/services/"

    def put(self, info: Descriptor) -> None:
        self.write(f"{info.name}/{info.id}", info.encode().decode())

    def write(self, name: str, value: str) -> None:
        self._server.ctl("put", self._prefix + name, value)

    def delete(self, name: str) -> None:
        self._server.ctl("del", self._prefix + name)

    def transact(self, *operations: str) -> None:
        """Run put and delete operations in one transaction."""
        lines = "\n".join(operation.replace("@", self._prefix) for operation in operations)
        self._server.ctl("txn", input=f"\n{lines}\n\n\n")


@pytest.fixture
def store(etcd_server: EtcdServer, prefix: str) -> Store:
    return Store(etcd_server, prefix)


class Handler:
    """Records events and checks that they make sense by id (D2)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.present: dict[str, Descriptor] = {}
        self.wrong: list[ServiceEvent] = []

    def __call__(self, event: ServiceEvent) -> None:
        instance = event.info.id
        known = instance in self.present
        if known == (str(event.type) == "added"):
            self.wrong.append(event)
        if str(event.type) == "removed":
            if self.present.pop(instance, None) != event.info:
                self.wrong.append(event)
        else:
            self.present[instance] = event.info
        self.events.append((str(event.type), instance))


def test_discover_is_one_request(client: Client, store: Store, counter: RpcCounter) -> None:
    for instance in ("b-2", "b-1", "b-10"):
        store.put(descriptor(instance))
    with counter.expect(Range=1):
        found = client.discover("billing")
    assert found == [descriptor("b-1"), descriptor("b-10"), descriptor("b-2")]
    assert client.discover("nobody") == []


def test_discover_serializable(client: Client, store: Store, counter: RpcCounter) -> None:
    store.put(descriptor())
    with counter.expect(Range=1):
        assert client.discover("billing", serializable=True) == [descriptor()]


def test_malformed_values_are_reported_once_and_hide_nobody(
    client: Client, store: Store, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(descriptor("b-1"))
    store.write("billing/b-2", "SECRET")
    store.put(descriptor("b-3"))
    for _ in range(3):
        assert [info.id for info in client.discover("billing")] == ["b-1", "b-3"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{prefix}/services/billing/b-2" in record.getMessage()
    assert "SECRET" not in caplog.text


def test_nested_names_are_not_listed(client: Client, store: Store) -> None:
    store.put(descriptor("b-1"))
    store.write("billing/eu/b-1", descriptor("b-1", name="eu").encode().decode())
    store.write("billing-2/b-1", descriptor("b-1", name="billing-2").encode().decode())
    assert client.discover("billing") == [descriptor("b-1")]
    assert client.services("billing").instances == (descriptor("b-1"),)


@pytest.mark.parametrize("name", ["", "a/b", "/", "a\0", 7])
def test_refuses_names(client: Client, name: str, counter: RpcCounter) -> None:
    for call in (client.discover, client.services, lambda n: client.watch_service(n, print)):
        with pytest.raises(InvalidArgument):
            call(name)
    assert counter.total == 0


def test_view_follows(client: Client, store: Store, counter: RpcCounter) -> None:
    store.put(descriptor("b-2"))
    view = client.services("billing")
    assert view.name == "billing"
    assert view.instances == (descriptor("b-2"),)
    assert client.services("billing") is view
    store.put(descriptor("b-1"))
    eventually(lambda: view.instances == (descriptor("b-1"), descriptor("b-2")))
    assert view.instances is view.instances
    eventually(lambda: not view.stale)
    counter.reset()
    assert {view.pick().id for _ in range(100)} == {"b-1", "b-2"}
    assert (len(view), list(view)) == (2, list(view.instances))
    assert counter.total == 0
    store.delete("billing/b-1")
    store.delete("billing/b-2")
    eventually(lambda: view.instances == ())
    with pytest.raises(NoInstances, match="billing"):
        view.pick()
    assert view


def test_view_revision_never_runs_ahead(
    client: Client, store: Store, etcd_server: EtcdServer
) -> None:
    view = client.services("billing")
    for n in range(5):
        store.put(descriptor(f"b-{n}"))
        now = revision(etcd_server)
        eventually(lambda n=n: len(view) == n + 1)  # type: ignore[misc]
        assert view.revision <= now


def test_view_tells_what_changed(client: Client, store: Store) -> None:
    store.put(descriptor("b-0"))
    view = client.services("billing")
    heard: list[tuple[str, str]] = []

    def hear(sender: ServiceView, *, name: str, events: tuple[ServiceEvent, ...]) -> None:
        assert name == "billing"
        heard.extend((str(event.type), event.info.address) for event in events)

    with signals.service_changed.connected_to(hear, sender=view):
        store.put(descriptor("b-1"))
        store.put(descriptor("b-1", address="moved:1"))
        store.delete("billing/b-1")
        eventually(lambda: len(heard) == 3)
    assert heard == [("added", "b-1:80"), ("modified", "moved:1"), ("removed", "moved:1")]


def test_closed_view(client: Client, store: Store) -> None:
    store.put(descriptor())
    with client.services("billing") as view:
        pass
    assert view.closed
    assert view.stale
    view.close()
    assert view.instances == (descriptor(),)
    again = client.services("billing")
    assert again is not view
    client.close()
    assert again.closed
    with pytest.raises(ClosedError):
        client.services("billing")


def test_view_of_an_unreachable_etcd_starts_nothing(make_client: Callable[..., Client]) -> None:
    client = make_client("127.0.0.1:1")
    with pytest.raises(ConnectionError):
        client.services("billing", timeout=0.2)
    with pytest.raises(ConnectionError):
        client.watch_service("billing", print, timeout=0.2)
    with pytest.raises(ConnectionError):
        client.discover("billing", timeout=0.2)


def test_subscription_tells_the_present_first(client: Client, store: Store) -> None:
    for instance in ("b-2", "b-1"):
        store.put(descriptor(instance))
    handler = Handler()
    with client.watch_service("billing", handler):
        store.put(descriptor("b-0"))
        eventually(lambda: len(handler.events) == 3)
        assert handler.events == [("added", "b-1"), ("added", "b-2"), ("added", "b-0")]
        store.put(descriptor("b-1", address="moved:1"))
        store.delete("billing/b-2")
        eventually(lambda: handler.events[3:] == [("modified", "b-1"), ("removed", "b-2")])
    assert handler.wrong == []


def test_no_gap_between_the_present_and_the_changes(
    client: Client, store: Store, make_client: Callable[..., Client], etcd_server: EtcdServer
) -> None:
    other = make_client(etcd_server.endpoint)
    stop = threading.Event()

    def churn() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            other.register(descriptor(f"b-{n % 7}", address=f"a:{n}"))

    writer = threading.Thread(target=churn, name="etcd-test-churn")
    writer.start()
    handlers = [Handler() for _ in range(10)]
    subscriptions = [client.watch_service("billing", handler) for handler in handlers]
    eventually(lambda: all(len(handler.events) > 30 for handler in handlers), timeout=30)
    stop.set()
    writer.join(10)
    # Those that were taken over give in, those that are left stay: the store comes to rest.
    eventually(
        lambda: all(
            sorted(handler.present.values(), key=lambda info: info.id) == client.discover("billing")
            for handler in handlers
        ),
        timeout=30,
    )
    assert [handler.wrong for handler in handlers] == [[]] * 10
    for subscription in subscriptions:
        subscription.cancel()


def test_what_does_not_change_an_instance_is_no_event(client: Client, store: Store) -> None:
    handler = Handler()
    store.put(descriptor("b-1"))
    with client.watch_service("billing", handler):
        eventually(lambda: handler.events == [("added", "b-1")])
        store.put(descriptor("b-1"))
        # Written with other spacing, and fields that are not ours.
        store.write(
            "billing/b-1", '{"name": "billing", "id": "b-1", "address": "b-1:80", "weight": 3}'
        )
        store.write("billing/b-1", "garbage")
        store.write("billing/broken", "garbage")
        store.delete("billing/broken")
        store.put(descriptor("end"))
        eventually(lambda: len(handler.events) >= 2)
        assert handler.events == [("added", "b-1"), ("added", "end")]
        # The removal carries the last descriptor that was good.
        store.delete("billing/b-1")
        eventually(lambda: handler.events[2:] == [("removed", "b-1")])
    assert handler.wrong == []


def test_one_transaction_over_several_instances(client: Client, store: Store) -> None:
    for n in (1, 2):
        store.put(descriptor(f"b-{n}"))
    handler = Handler()
    with client.watch_service("billing", handler):
        eventually(lambda: len(handler.events) == 2)
        store.transact("del @billing/b-1", "del @billing/b-2")
        eventually(lambda: handler.present == {})
    assert handler.wrong == []


def test_a_handler_that_raises_misses_nothing(
    client: Client, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def handler(event: ServiceEvent) -> None:
        seen.append(event.info.id)
        raise ValueError("the handler's own")

    for n in range(3):
        store.put(descriptor(f"b-{n}"))
    with client.watch_service("billing", handler):
        store.put(descriptor("b-3"))
        eventually(lambda: seen == ["b-0", "b-1", "b-2", "b-3"])
    assert [r.name for r in caplog.records] == ["etcd_core.discovery"] * 4


def test_none_after_cancel(client: Client, store: Store) -> None:
    for n in range(3):
        store.put(descriptor(f"b-{n}"))
    seen: list[str] = []
    entered, go_on = threading.Event(), threading.Event()

    def handler(event: ServiceEvent) -> None:
        seen.append(event.info.id)
        entered.set()
        go_on.wait(10)

    subscription = client.watch_service("billing", handler)
    assert entered.wait(10)
    canceller = threading.Thread(target=subscription.cancel, name="etcd-test-cancel")
    canceller.start()
    eventually(lambda: subscription.cancelled)
    go_on.set()
    canceller.join(10)
    assert seen == ["b-0"]


def test_cancel_from_the_handler(client: Client, store: Store) -> None:
    for n in range(3):
        store.put(descriptor(f"b-{n}"))
    seen: list[str] = []
    ready, done = threading.Event(), threading.Event()

    def handler(event: ServiceEvent) -> None:
        ready.wait(10)
        seen.append(event.info.id)
        subscription.cancel()
        done.set()

    subscription = client.watch_service("billing", handler)
    ready.set()
    assert done.wait(10)
    store.put(descriptor("b-9"))
    assert seen == ["b-0"]


def test_a_repair_does_not_look_like_a_change(client: Client, store: Store) -> None:
    handler = Handler()
    registration = client.register(descriptor())
    with client.watch_service("billing", handler):
        eventually(lambda: handler.events == [("added", "b-1")])
        repaired: list[bool] = []

        def note(sender: object, **told: object) -> None:
            repaired.append(sender is registration and told["repaired"] is True)

        with signals.service_registered.connected_to(note):
            store.write("billing/b-1", "garbage")
            eventually(lambda: True in repaired)
        store.put(descriptor("end"))
        eventually(lambda: handler.events[1:] == [("added", "end")])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_may_end_what_it_inherited(client: Client, store: Store) -> None:
    store.put(descriptor())
    view = client.services("billing")
    handler = Handler()
    subscription = client.watch_service("billing", handler)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert view.stale
            assert view.pick() == descriptor()
            view.close()
            subscription.cancel()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    store.put(descriptor("b-2"))
    eventually(lambda: len(view) == 2)
    eventually(lambda: len(handler.events) == 2)


@pytest.fixture
def big(client: Client, prefix: str) -> ServiceView:
    from etcd_core.wire import messages as pb
    from etcd_core.wire.rpc import TXN

    count, batch = 10_000, 100
    for start in range(0, count, batch):
        puts = [
            pb.RequestOp(
                request_put=pb.PutRequest(
                    key=f"{prefix}/services/billing/b-{n:05}".encode(),
                    value=descriptor(f"b-{n:05}").encode(),
                )
            )
            for n in range(start, start + batch)
        ]
        client.scope().engine.channel.unary(TXN, pb.TxnRequest(success=puts), what="fill")
    return client.services("billing")


def test_ten_thousand_instances(big: ServiceView, store: Store) -> None:
    assert len(big) == 10_000
    store.put(descriptor("b-00500", address="moved:1"))
    eventually(lambda: big.instances[500].address == "moved:1")
    store.put(descriptor("a-first"))
    eventually(lambda: big.instances[0].id == "a-first")
    assert [info.id for info in big] == sorted(info.id for info in big)
    gc.collect()
    rounds = 20_000
    started = time.perf_counter()
    for _ in range(rounds):
        big.pick()
    # The bar is 3 us on a quiet machine.
    assert (time.perf_counter() - started) / rounds < 15e-6
