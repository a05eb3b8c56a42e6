"""What a process pays at its start: imports, the first connection, the first setting.

Imports are timed in fresh interpreters, which time themselves: their own start is not counted. They
take CPU time, not wall time, for imports do little else than compute and the machine may be busy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

from etcd_core import Client, Config
from etcd_core.wire import messages as pb

from .core_rows import Bench
from .measure import Row, compare, seconds, timed
from .stub import Stub

_KEPT_OUT = ("grpc", "google.protobuf", "yaml", "etcd3")
_TIMER = """
import json, sys, time
begins = time.process_time()
{code}
took = time.process_time() - begins
print(json.dumps([took, [name for name in {names!r} if name in sys.modules]]))
"""
_FOUR = """
import grpc, yaml
import google.protobuf.descriptor_pool, google.protobuf.descriptor_pb2
import google.protobuf.message_factory
import etcd_core, etcd3
"""
_FIRST_USE = """
import etcd_core
client = etcd_core.Client(endpoints=["127.0.0.1:1"])
client.raw, client.config_source("app")
"""
_DYNACONF = """
from dynaconf import Dynaconf
settings = Dynaconf({options})
settings.get("X")
"""
_RANGE = """
import yaml
from etcd_benchmarks.stub import Stub
with Stub({endpoint!r}) as stub:
    yaml.safe_load(stub.read("/bench/config/first/").kvs[0].value)
"""
_DJANGO = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS={apps!r}, ETCD={{"ENDPOINTS": [{endpoint!r}]}})
django.setup()
"""


def startup(bench: Bench) -> list[Row]:
    """Return the rows of a process's start."""
    rounds = 5 if bench.effort.iterations < 100 else 7
    rows = [
        _import_row("etcd_core", "import blinker, logging", rounds),
        _import_row("flask_etcd", "import flask", rounds),
        _import_row("django_etcd", "import django.conf, django.dispatch", rounds),
    ]
    first = Row("first use of etcd_core", "importing grpc, protobuf, yaml, etcd3", "<= 1.3x")
    # More of them: half a second of importing differs by a tenth from one process to the next.
    rows.append(compare(first, _fresh(_FOUR), _fresh(_FIRST_USE), 2 * rounds + 1, 1.3))
    rows.append(_first_connection(bench))
    rows.append(_first_setting(bench, rounds))
    rows.append(_django_ready(bench, rounds))
    return rows


def _fresh(code: str) -> Callable[[], Sequence[float]]:
    return lambda: [_run(code)[0]]


def _run(code: str) -> tuple[float, list[str]]:
    """Run ``code`` in a new interpreter; return its seconds and what it imported of the four."""
    program = _TIMER.format(code=code, names=_KEPT_OUT)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    took, loaded = json.loads(done.stdout.splitlines()[-1])
    return float(took), list(loaded)


def _import_row(module: str, floor: str, rounds: int) -> Row:
    row = Row(f"import {module}", floor, "grpc, protobuf, yaml, etcd3 stay out")
    compare(row, _fresh(floor), _fresh(f"import {module}"), rounds)
    loaded = _run(f"import {module}")[1]
    row.requests = ", ".join(loaded)
    row.check(not loaded)
    return row


def _first_connection(bench: Bench) -> Row:
    row = Row("first request on a new client", "the same on a new stub")

    def floor() -> None:
        with Stub(bench.endpoint) as stub:
            stub.range(pb.RangeRequest(key=b"/bench/none"))

    def ours() -> None:
        with Client(Config([bench.endpoint], prefix="/bench")) as client:
            client.leader("nobody")

    return compare(row, lambda: timed(floor, 5), lambda: timed(ours, 5), bench.effort.rounds)


def _first_setting(bench: Bench, rounds: int) -> Row:
    row = Row("first settings.X, etcd-only, not live", "Dynaconf without etcd, and a raw Range")
    with bench.client() as client:
        client.config_source("first").save({"x": 1})
    etcd = {"endpoints": [bench.endpoint], "prefix": "/bench", "name": "first", "watch": False}
    options = f"LOADERS_FOR_DYNACONF=['dynaconf_etcd.loader'], ETCD_FOR_DYNACONF={etcd!r}"
    plain = _DYNACONF.format(options="LOADERS_FOR_DYNACONF=[]")
    floor = plain + _RANGE.format(endpoint=bench.endpoint)
    alone = statistics.median(_run(plain)[0] for _ in range(3))
    row.notes.append(f"{seconds(alone)} of that is Dynaconf without etcd")
    return compare(row, _fresh(floor), _fresh(_DYNACONF.format(options=options)), rounds)


def _django_ready(bench: Bench, rounds: int) -> Row:
    row = Row("django.setup() with django_etcd", "without it")
    with_it = _DJANGO.format(apps=["django_etcd"], endpoint=bench.endpoint)
    without = _DJANGO.format(apps=[], endpoint=bench.endpoint)
    return compare(row, _fresh(without), _fresh(with_it), rounds)
