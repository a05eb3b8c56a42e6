"""Choosing instances, and calling them through requests and httpx."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from etcd_core import Client, Descriptor, InvalidArgument, NoInstances, Registration
from etcd_core.resolver import Resolver
from etcd_core.testing import eventually
from etcd_core.testing._ports import free_ports


def register(client: Client, *ids: str, **metadata: str) -> list[Registration]:
    return [
        client.register(Descriptor(name="pay", id=each, address=f"{each}:1", metadata=metadata))
        for each in ids
    ]


def test_round_robin_visits_all_in_turn(etcd_client: Client) -> None:
    register(etcd_client, "a", "b", "c")
    resolver = Resolver(etcd_client.services("pay"))
    picked = [resolver.pick().id for _ in range(9)]
    assert picked[:3] == picked[3:6] == picked[6:]
    assert sorted(picked[:3]) == ["a", "b", "c"]


def test_random_visits_all(etcd_client: Client) -> None:
    register(etcd_client, "a", "b")
    resolver = Resolver(etcd_client.services("pay"), policy="random")
    assert {resolver.pick().id for _ in range(200)} == {"a", "b"}


def test_failing_instances_are_avoided_for_a_while(etcd_client: Client) -> None:
    register(etcd_client, "a", "b")
    resolver = Resolver(etcd_client.services("pay"), avoid_for=0.3)
    bad = resolver.pick()
    resolver.failed(bad)
    assert bad.id not in {resolver.pick().id for _ in range(5)}
    eventually(lambda: resolver.pick().id == bad.id, message="it is tried again")
    for each in etcd_client.services("pay"):
        resolver.failed(each)
    assert resolver.pick()
    resolver.succeeded(bad)
    assert {resolver.pick().id for _ in range(3)} == {bad.id}


def test_draining_instances_come_last(etcd_client: Client) -> None:
    register(etcd_client, "a", status="draining")
    (other,) = register(etcd_client, "b")
    view = etcd_client.services("pay")
    resolver = Resolver(view)
    assert {resolver.pick().id for _ in range(5)} == {"b"}
    other.deregister()
    eventually(lambda: len(view) == 1, message="b gone")
    assert resolver.pick().id == "a"


def test_keeps_the_last_instances_with_a_bound(etcd_client: Client) -> None:
    (only,) = register(etcd_client, "a")
    view = etcd_client.services("pay")
    resolver = Resolver(view, keep_last=60)
    short = Resolver(view, keep_last=0)
    assert resolver.pick().id == short.pick().id == "a"
    only.deregister()
    eventually(lambda: not view.instances, message="a gone")
    assert resolver.pick().id == "a"
    with pytest.raises(NoInstances, match="pay"):
        short.pick()
    with pytest.raises(NoInstances):
        resolver.pick(exclude={"a"})


@pytest.mark.parametrize("options", [{"policy": "best"}, {"keep_last": -1}, {"avoid_for": -1}])
def test_refuses_bad_options(etcd_client: Client, options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        Resolver(etcd_client.services("pay"), **options)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"{self.path} {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="test-web")
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def good_and_dead(etcd_client: Client) -> Iterator[str]:
    with web_server() as address:
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        for instance_id, where in (("good", address), ("dead", dead)):
            etcd_client.register(Descriptor(name="pay", id=instance_id, address=where))
        yield address


def test_requests_adapter(etcd_client: Client, good_and_dead: str) -> None:
    requests = pytest.importorskip("requests")
    from etcd_core.contrib.requests import EtcdAdapter

    with ExitStack() as stack:
        session = stack.enter_context(requests.Session())
        session.mount("etcd://", EtcdAdapter(etcd_client))
        for _ in range(4):
            answer = session.get("etcd://pay/invoices?id=7")
            assert answer.text == f"/invoices?id=7 {good_and_dead}"
        with pytest.raises(NoInstances):
            session.get("etcd://nobody/")
        fresh = stack.enter_context(requests.Session())
        fresh.mount("etcd://", EtcdAdapter(etcd_client))
        outcomes = set()
        for _ in range(2):
            try:
                outcomes.add(fresh.post("etcd://pay/").status_code)
            except requests.ConnectionError:
                outcomes.add("refused")
        # A POST is not sent again, so one of two meets the dead instance.
        assert outcomes == {200, "refused"}


def test_httpx_transport(etcd_client: Client, good_and_dead: str) -> None:
    httpx = pytest.importorskip("httpx")
    from etcd_core.contrib.httpx import EtcdTransport

    with httpx.Client(mounts={"etcd://": EtcdTransport(etcd_client)}, trust_env=False) as http:
        for _ in range(4):
            answer = http.get("etcd://pay/invoices?id=7")
            assert answer.text == f"/invoices?id=7 {good_and_dead}"
        with pytest.raises(NoInstances):
            http.get("etcd://nobody/")
    with httpx.Client(mounts={"etcd://": EtcdTransport(etcd_client)}, trust_env=False) as http:
        outcomes = set()
        for _ in range(2):
            try:
                outcomes.add(http.post("etcd://pay/").status_code)
            except httpx.ConnectError:
                outcomes.add("refused")
        assert outcomes == {200, "refused"}
