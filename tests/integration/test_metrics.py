"""Prometheus and OpenTelemetry show what really happens, and the log names it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from etcd_core import Client, Descriptor, EtcdError, telemetry
from etcd_core.contrib import opentelemetry, prometheus
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.testing._ports import free_ports

MakeClient = Callable[..., Client]
PAGE = Path(__file__).parents[2] / "docs" / "observability.md"

Labels = Mapping[str, str]


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    """A registry that shows our metrics until the end of the test."""
    registry = CollectorRegistry()
    prometheus.install(registry)
    yield registry
    prometheus.uninstall(registry)


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """A reader of a provider with our instruments."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.install(provider)
    yield reader
    opentelemetry.uninstall(provider)
    provider.shutdown()


def scrape(body: bytes, name: str, /, **labels: str) -> float | None:
    """Return the sum of the samples with these labels, None if there are none."""
    values = [
        sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(values) if values else None


def shown(registry: CollectorRegistry, name: str, /, **labels: str) -> float | None:
    return scrape(prometheus.exposition(registry)[0], name, **labels)


def collected(reader: InMemoryMetricReader, name: str, /, **attributes: str) -> float | None:
    """Return the sum of the values (of a histogram: the count) with these attributes."""
    wanted = {key.replace("__", "."): value for key, value in attributes.items()}
    data = reader.get_metrics_data()
    points = [
        point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
        if wanted.items() <= dict(point.attributes or {}).items()
    ]
    if not points:
        return None
    return sum(getattr(point, "value", None) or getattr(point, "count", 0) for point in points)


def test_an_outage_in_prometheus(
    own_server: EtcdServer, make_client: MakeClient, registry: CollectorRegistry, prefix: str
) -> None:
    client = make_client(own_server.endpoint, timeout=30)
    source = client.config_source("app")
    source.save({"a": 1})
    with source.watch(lambda snapshot: None):
        eventually(lambda: shown(registry, "etcd_client_config_stale_seconds", name="app") == 0)
        assert shown(registry, "etcd_client_connected", prefix=prefix) == 1
        own_server.kill()
        eventually(lambda: shown(registry, "etcd_client_connected", prefix=prefix) == 0, 30)
        eventually(
            lambda: (shown(registry, "etcd_client_config_stale_seconds", name="app") or 0) > 0, 30
        )
        waiting = threading.Thread(target=client.leader, args=("x",))
        waiting.start()
        # Told as they happen, not when the request ends.
        retries = "etcd_client_rpc_retries_total"
        eventually(lambda: (shown(registry, retries, reason="not_executed") or 0) >= 2, 30)
        own_server.start()
        waiting.join(30)
        eventually(lambda: shown(registry, "etcd_client_connected", prefix=prefix) == 1, 30)
        eventually(lambda: shown(registry, "etcd_client_config_stale_seconds", name="app") == 0, 30)
        revision = source.save({"a": 2})
        eventually(
            lambda: shown(registry, "etcd_client_config_revision", name="app") == revision, 30
        )
    assert telemetry.flush(10)
    assert (shown(registry, "etcd_client_rpcs_total", method="KV/Txn", outcome="ok") or 0) >= 2
    assert shown(registry, "etcd_client_rpc_duration_seconds_count", method="KV/Txn") == shown(
        registry, "etcd_client_rpcs_total", method="KV/Txn"
    )


def test_an_outage_in_opentelemetry(
    own_server: EtcdServer, make_client: MakeClient, reader: InMemoryMetricReader, prefix: str
) -> None:
    client = make_client(own_server.endpoint, timeout=30)
    source = client.config_source("app")
    source.save({"a": 1})
    with source.watch(lambda snapshot: None):
        eventually(lambda: collected(reader, "etcd.client.config.stale", etcd__name="app") == 0)
        assert collected(reader, "etcd.client.connected", etcd__prefix=prefix) == 1
        own_server.kill()
        eventually(lambda: collected(reader, "etcd.client.connected", etcd__prefix=prefix) == 0, 30)
        stale = "etcd.client.config.stale"
        eventually(lambda: (collected(reader, stale, etcd__name="app") or 0) > 0, 30)
        waiting = threading.Thread(target=client.leader, args=("x",))
        waiting.start()
        eventually(lambda: (collected(reader, "etcd.client.rpc.retries") or 0) >= 2, 30)
        own_server.start()
        waiting.join(30)
        eventually(lambda: collected(reader, "etcd.client.connected", etcd__prefix=prefix) == 1, 30)
        eventually(lambda: collected(reader, stale, etcd__name="app") == 0, 30)
    assert telemetry.flush(10)
    transactions = collected(reader, "etcd.client.rpcs", rpc__method="KV/Txn")
    assert transactions is not None
    assert transactions >= 1
    assert collected(reader, "etcd.client.rpc.duration", rpc__method="KV/Txn") == transactions


def test_errors_are_named_alike(
    make_client: MakeClient, registry: CollectorRegistry, reader: InMemoryMetricReader
) -> None:
    with pytest.raises(EtcdError) as caught:
        make_client("127.0.0.1:1", timeout=0.3).leader("x")
    name = type(caught.value).__name__
    assert telemetry.flush(10)
    assert shown(registry, "etcd_client_rpcs_total", method="KV/Range", outcome=name) == 1
    assert collected(reader, "etcd.client.rpcs", rpc__method="KV/Range", error__type=name) == 1


def test_a_call_that_is_not_answered(
    make_client: MakeClient, proxy: FaultProxy, registry: CollectorRegistry
) -> None:
    client = make_client(proxy.endpoint, timeout=0.5)
    client.leader("x")
    proxy.hold()
    with pytest.raises(EtcdError) as caught:
        client.leader("x")
    assert telemetry.flush(10)
    outcome = type(caught.value).__name__
    assert shown(registry, "etcd_client_rpcs_total", outcome=outcome) == 1
    assert (shown(registry, "etcd_client_rpc_duration_seconds_sum") or 0) >= 0.4


def test_raw_requests_are_counted_too(
    etcd_server: EtcdServer, make_client: MakeClient, registry: CollectorRegistry, prefix: str
) -> None:
    make_client(etcd_server.endpoint).raw.put(f"{prefix}/a", "1")
    assert telemetry.flush(10)
    assert shown(registry, "etcd_client_rpcs_total", method="KV/Put", outcome="ok") == 1


def test_a_registration_and_its_margin(
    own_server: EtcdServer,
    make_client: MakeClient,
    registry: CollectorRegistry,
    reader: InMemoryMetricReader,
) -> None:
    me = {"service": "web", "id": f"web-{os.getpid()}"}
    ours = {"etcd__service": me["service"], "etcd__id": me["id"]}
    margin = "etcd_client_registration_margin_seconds"
    client = make_client(own_server.endpoint)
    with client.register(Descriptor(name="web", id=me["id"], address="h:1"), ttl=6):
        assert shown(registry, "etcd_client_registered", **me) == 1
        assert collected(reader, "etcd.client.registered", **ours) == 1
        assert (shown(registry, margin, **me) or 0) > 3.3
        own_server.pause()
        eventually(lambda: (shown(registry, margin, **me) or 9) < 3.3, 30)
        assert (collected(reader, "etcd.client.registration.margin", **ours) or 9) < 3.4
        own_server.resume()
        eventually(lambda: (shown(registry, margin, **me) or 0) > 3.6, 30)
    assert shown(registry, "etcd_client_registered", **me) is None
    assert collected(reader, "etcd.client.registered", **ours) is None


def test_leadership(
    etcd_server: EtcdServer,
    make_client: MakeClient,
    registry: CollectorRegistry,
    reader: InMemoryMetricReader,
) -> None:
    name = f"scheduler-{os.getpid()}"
    with make_client(etcd_server.endpoint).candidate(name) as candidate:
        assert candidate.wait(30)
        assert shown(registry, "etcd_client_leader", election=name) == 1
        assert collected(reader, "etcd.client.leader", etcd__election=name) == 1
    assert shown(registry, "etcd_client_leader", election=name) is None
    assert collected(reader, "etcd.client.leader", etcd__election=name) is None


def test_leadership_falls_to_zero(
    etcd_server: EtcdServer,
    make_client: MakeClient,
    registry: CollectorRegistry,
    reader: InMemoryMetricReader,
) -> None:
    name = f"scheduler-{os.getpid()}"
    election = make_client(etcd_server.endpoint).campaign(name, "me")
    assert shown(registry, "etcd_client_leader", election=name) == 1
    eventually(lambda: (shown(registry, "etcd_client_watches") or 0) >= 1)
    etcd_server.ctl("del", election.etcd_key)
    eventually(lambda: shown(registry, "etcd_client_leader", election=name) == 0)
    assert collected(reader, "etcd.client.leader", etcd__election=name) == 0
    election.resign()
    assert shown(registry, "etcd_client_leader", election=name) is None


def test_installing_twice_is_once_and_registries_are_apart(
    etcd_server: EtcdServer, make_client: MakeClient, registry: CollectorRegistry
) -> None:
    prometheus.install(registry)
    other = CollectorRegistry()
    prometheus.install(other)
    client = make_client(etcd_server.endpoint)
    client.leader("x")
    assert telemetry.flush(10)
    for each in (registry, other):
        assert shown(each, "etcd_client_rpcs_total", method="KV/Range") == 1
    prometheus.uninstall(other)
    prometheus.uninstall(other)
    client.leader("x")
    assert telemetry.flush(10)
    assert shown(registry, "etcd_client_rpcs_total", method="KV/Range") == 2
    assert prometheus.exposition(other)[0] == b""
    prometheus.install(other)
    assert shown(other, "etcd_client_rpcs_total") is None
    prometheus.uninstall(other)


def test_a_registry_with_other_metrics_of_our_names_is_left_as_it_was() -> None:
    registry = CollectorRegistry()
    theirs = Counter("etcd_client_rpcs", "Theirs.", registry=registry)
    theirs.inc()
    with pytest.raises(ValueError, match="etcd_client_rpcs"):
        prometheus.install(registry)
    assert [family.name for family in registry.collect()] == ["etcd_client_rpcs"]
    assert not telemetry.heard()


def test_installing_opentelemetry_twice_is_once(
    etcd_server: EtcdServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    reader, other = InMemoryMetricReader(), InMemoryMetricReader()
    provider, second = MeterProvider([reader]), MeterProvider([other])
    client = make_client(etcd_server.endpoint)
    try:
        for each in (provider, provider, second):
            opentelemetry.install(each)
        client.leader("x")
        assert telemetry.flush(10)
        assert collected(reader, "etcd.client.rpcs") == collected(other, "etcd.client.rpcs") == 1
        opentelemetry.uninstall(provider)
        opentelemetry.uninstall(provider)
        client.leader("x")
        assert telemetry.flush(10)
        assert collected(other, "etcd.client.rpcs") == 2
        assert collected(reader, "etcd.client.connected") is None
        opentelemetry.install(provider)
        client.leader("x")
        assert telemetry.flush(10)
        assert collected(reader, "etcd.client.rpcs") == 2
        assert collected(reader, "etcd.client.connected") == 1
    finally:
        opentelemetry.uninstall(provider)
        opentelemetry.uninstall(second)
        provider.shutdown()
        second.shutdown()
    assert [record.getMessage() for record in caplog.records if "nstrument" in record.msg] == []


def test_the_global_provider_may_be_set_later(etcd_server: EtcdServer, prefix: str) -> None:
    code = f"""
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from etcd_core import Client, telemetry
from etcd_core.contrib import opentelemetry
opentelemetry.install()
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
opentelemetry.install()
opentelemetry.install(metrics.get_meter_provider())
with Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r}) as client:
    client.leader("x")
    assert telemetry.flush(10)
    data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0]
    assert data.scope.name == "etcd_core"
    print(sorted(
        (metric.name, [point.value for point in metric.data.data_points])
        for metric in data.metrics if metric.name in ("etcd.client.rpcs", "etcd.client.connected")
    ))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.strip() == "[('etcd.client.connected', [1.0]), ('etcd.client.rpcs', [1])]"


def test_a_forked_child_counts_from_zero(etcd_server: EtcdServer, prefix: str) -> None:
    code = f"""
import os
from prometheus_client import REGISTRY
from etcd_core import Client, telemetry
from etcd_core.contrib import prometheus
prometheus.install()
def counted():
    return REGISTRY.get_sample_value(
        "etcd_client_rpcs_total", {{"method": "KV/Range", "outcome": "ok"}}
    )
client = Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r})
for _ in range(3):
    client.leader("x")
assert telemetry.flush(10)
pid = os.fork()
if pid == 0:
    prometheus.exposition()
    before = counted()
    client.leader("x")
    print(before, telemetry.flush(10), counted(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print(counted())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["None", "True", "1.0", "3.0"]


SITE = """
import os
from flask import Flask
from etcd_core import Client
from etcd_core.contrib import prometheus
from etcd_core.contrib.prometheus import exposition

prometheus.install()
client = Client(endpoints=[os.environ["TEST_ENDPOINT"]], prefix=os.environ["TEST_PREFIX"])
# Before the fork, as applications with preload do.
client.leader("x")
app = Flask(__name__)

@app.get("/work")
def work():
    client.leader("x")
    return str(os.getpid())

"""


def view_of_the_page() -> str:
    """Return the Flask view that the page shows."""
    match = re.search(r"(@app\.get\(\"/metrics\"\)\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("multiprocess", [False, True])
def test_the_text_endpoint_under_gunicorn(
    etcd_server: EtcdServer, prefix: str, tmp_path: Path, multiprocess: bool
) -> None:
    (tmp_path / "site_under_test.py").write_text(SITE + view_of_the_page())
    (port,) = free_ports(1)
    environment = {**os.environ, "TEST_ENDPOINT": etcd_server.endpoint, "TEST_PREFIX": prefix}
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    if multiprocess:
        (tmp_path / "counts").mkdir()
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "counts")
    workers = 2 if multiprocess else 1
    command = ["gunicorn", f"-w{workers}", "--preload", f"-b127.0.0.1:{port}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "site_under_test:app"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:

        def get(path: str) -> bytes:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                content_type = answer.headers["Content-Type"]
                assert path != "/metrics" or content_type.startswith("text/plain; version=")
                body: bytes = answer.read()
                return body

        eventually(lambda: get("/work"), 30)
        asked = 1
        pids = {get("/work")}
        asked += 1
        deadline = time.monotonic() + 30
        while len(pids) < workers and time.monotonic() < deadline:
            pids.add(get("/work"))
            asked += 1
        assert len(pids) == workers

        def counted() -> float | None:
            return scrape(
                get("/metrics"), "etcd_client_rpcs_total", method="KV/Range", outcome="ok"
            )

        # With files the parent's request is one more: it is a process like the others.
        expected = asked + 1 if multiprocess else asked
        eventually(lambda: counted() == expected, 10, message=f"{expected} requests")
        body = get("/metrics")
        assert scrape(body, "etcd_client_connected", prefix=prefix) == 1
        assert scrape(body, "etcd_client_rpc_duration_seconds_count") == expected
    finally:
        process.terminate()
        process.wait(30)


def formatter_of_the_page() -> str:
    match = re.search(r"```python\n(import json\n.*?)```", PAGE.read_text(), re.DOTALL)
    assert match is not None
    return match[1]


def test_an_outage_in_the_log(own_server: EtcdServer, prefix: str) -> None:
    code = f"""
{formatter_of_the_page()}
import sys
from etcd_core import Client
from etcd_core.testing import eventually
with Client(endpoints=[{own_server.endpoint!r}], prefix={prefix!r}) as client:
    source = client.config_source("app")
    source.save({{"password": "hunter2"}})
    with source.watch(lambda snapshot: None):
        print("ready", flush=True)
        eventually(lambda: not client.connected, 30)
        for _ in range(5):
            try:
                client.leader("x", timeout=0.3)
            except Exception:
                pass
        print("away", flush=True)
        eventually(lambda: client.connected, 30)
        source.load()
        print("back", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        own_server.kill()
        assert process.stdout.readline() == "away\n"
        own_server.start()
        assert process.stdout.readline() == "back\n"
        _, lines = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(10)
    records = [json.loads(line) for line in lines.splitlines()]
    lost, restored = records
    assert lost["etcd_event"] == "connection.lost"
    assert lost["etcd_prefix"] == prefix
    assert lost["etcd_endpoints"] == [own_server.endpoint.removeprefix("http://")]
    assert lost["etcd_reason"]
    assert lost["level"] == "WARNING"
    assert lost["logger"] == "etcd_core.channel"
    assert restored["etcd_event"] == "connection.restored"
    assert restored["etcd_endpoint"] in lost["etcd_endpoints"]
    assert restored["etcd_seconds"] > 0
    assert "hunter2" not in lines


def test_losses_are_named(
    etcd_server: EtcdServer,
    make_client: MakeClient,
    caplog: pytest.LogCaptureFixture,
    prefix: str,
) -> None:
    client = make_client(etcd_server.endpoint)
    with caplog.at_level(logging.INFO, "etcd_core"):
        registration = client.register(Descriptor(name="web", id="1", address="h:1"))
        election = client.campaign("scheduler", "me")
        lock = client.lock("jobs")
        keys = (election.etcd_key, lock.etcd_key)
        for lease in (f"{registration.lease_id:x}", *(key.rpartition("/")[2] for key in keys)):
            etcd_server.ctl("lease", "revoke", lease)
        eventually(lambda: lock.lost_reason and election.lost_reason, 30)

        def told(event: str) -> list[Mapping[str, object]]:
            return [vars(each) for each in caplog.records if vars(each).get("etcd_event") == event]

        eventually(lambda: told("registration.restored"), 30)
    (lost,) = told("registration.lost")
    assert (lost["etcd_service"], lost["etcd_id"]) == ("web", "1")
    assert lost["etcd_reason"]
    (leadership,) = told("leadership.lost")
    assert leadership["etcd_key"] == election.etcd_key
    assert leadership["etcd_token"] == election.token
    (gone,) = told("lock.lost")
    assert gone["etcd_key"] == lock.etcd_key
    assert gone["etcd_reason"] == lock.lost_reason
    assert all(hasattr(each, "etcd_event") for each in caplog.records if each.levelno >= 20)


def test_unheard_requests_are_not_measured(
    etcd_server: EtcdServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*args: object) -> None:
        raise AssertionError("measured although nobody listens")

    monkeypatch.setattr(telemetry, "OpenCall", unwanted)
    assert make_client(etcd_server.endpoint).leader("x") is None
