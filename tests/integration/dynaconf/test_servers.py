"""Settings in processes that fork: gunicorn with and without preload, Celery, plain forks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etcd_core import Client
from etcd_core.testing import EtcdServer, eventually

pytestmark = pytest.mark.timeout(150)

APP = """
import os
import threading
from dynaconf import Dynaconf, FlaskDynaconf
from flask import Flask, jsonify
import dynaconf_etcd

app = Flask(__name__)
FlaskDynaconf(
    app,
    ENVIRONMENTS=False,
    LOADERS_FOR_DYNACONF=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
    ETCD_FOR_DYNACONF={{"endpoints": [{endpoint!r}], "prefix": {prefix!r}, "name": "app"}},
)
assert app.config["A"]
seen = []
dynaconf_etcd.on_change(app.dynaconf, "a")(lambda change: seen.append(change.new))
LOADED_IN = os.getpid()
THREADS = [t.name for t in threading.enumerate() if t.name.startswith("etcd-")]

@app.get("/")
def index():
    return jsonify(
        a=app.config["A"], pid=os.getpid(), loaded_in=LOADED_IN, threads=THREADS, seen=seen
    )
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def serve(etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path) -> Callable[..., object]:
    @contextmanager
    def run(*flags: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
        (tmp_path / "served.py").write_text(
            APP.format(endpoint=etcd_server.endpoint, prefix=etcd_client.prefix)
        )
        port = _free_port()
        log = (tmp_path / "log").open("wb")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "served:app", "--workers", "2"),
                *("--bind", f"127.0.0.1:{port}", *flags),
            ],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        try:
            eventually(lambda: _ask(port), timeout=90)
            yield port, process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()

    return run


def _ask(port: int) -> dict[str, object]:
    import json

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        body: dict[str, object] = json.load(answer)
        return body


def _all_show(port: int, value: int, workers: int = 2) -> bool:
    answers = [_ask(port) for _ in range(16)]
    fresh = {answer["pid"] for answer in answers if answer["a"] == value}
    return len(fresh) >= workers and all(answer["a"] == value for answer in answers)


@pytest.mark.parametrize("flags", [("--preload",), ()])
def test_gunicorn(
    etcd_client: Client, serve: Callable[..., object], flags: tuple[str, ...]
) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    with serve(*flags) as (port, process):  # type: ignore[attr-defined]
        first = _ask(port)
        assert (first["loaded_in"] == process.pid) is bool(flags)
        assert first["threads"] == []
        source.update({"a": 2})
        eventually(lambda: _all_show(port, 2), timeout=60)
        victim = _ask(port)["pid"]
        os.kill(int(str(victim)), signal.SIGKILL)
        source.update({"a": 3})
        eventually(lambda: _all_show(port, 3), timeout=60)
        eventually(lambda: 3 in list(_ask(port)["seen"]), timeout=60)  # type: ignore[call-overload]
        assert process.poll() is None
    assert process.returncode == 0


def test_a_plain_fork_keeps_its_values_and_ends(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"a": 1})
    script = f"""
import os, sys, dynaconf_etcd
from dynaconf import Dynaconf
settings = Dynaconf(
    loaders=["dynaconf_etcd.loader"],
    etcd={{
        "endpoints": [{etcd_server.endpoint!r}], "prefix": {etcd_client.prefix!r}, "name": "app"
    }},
)
assert settings.A == 1
assert dynaconf_etcd.status(settings).watching
child = os.fork()
if child == 0:
    assert settings.A == 1
    assert not dynaconf_etcd.status(settings).watching
    settings.reload()
    assert settings.A == 1
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert dynaconf_etcd.status(settings).watching
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout == "done\n", done.stderr


CELERY = """
import os
from celery import Celery
from dynaconf import Dynaconf
import dynaconf_etcd

settings = Dynaconf(
    loaders=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
    etcd={{"endpoints": [{endpoint!r}], "prefix": {prefix!r}, "name": "app"}},
)
settings.A
app = Celery("tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={{
        "data_folder_in": {folder!r}, "data_folder_out": {folder!r}, "control_folder": {control!r}
    }},
    worker_hijack_root_logger=False,
)

@app.task
def show():
    with open({out!r}, "a") as file:
        file.write(f"{{settings.A}} {{os.getpid()}} {{os.getppid()}}\\n")
"""


@pytest.mark.slow
def test_celery_prefork(etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path) -> None:
    pytest.importorskip("celery", reason="Celery is not installed")
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    for name in ("queue", "control"):
        (tmp_path / name).mkdir()
    out = tmp_path / "out"
    out.touch()
    (tmp_path / "tasks_of_test.py").write_text(
        CELERY.format(
            endpoint=etcd_server.endpoint,
            prefix=etcd_client.prefix,
            folder=str(tmp_path / "queue"),
            control=str(tmp_path / "control"),
            out=str(out),
        )
    )

    def send() -> None:
        subprocess.run(
            [sys.executable, "-c", "import tasks_of_test as t; t.show.delay()"],
            cwd=tmp_path,
            check=True,
            timeout=110,
        )

    log = (tmp_path / "log").open("wb")
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", "celery", "-A", "tasks_of_test", "worker"),
            *("--pool=prefork", "--concurrency=1", "--without-gossip", "--without-mingle"),
        ],
        cwd=tmp_path,
        stdout=log,
        stderr=log,
    )
    try:
        send()
        eventually(lambda: out.read_text().startswith("1 "), timeout=90)
        assert out.read_text().split()[2] == str(worker.pid)
        source.update({"a": 2})

        def shows_two() -> bool:
            send()
            return "\n2 " in out.read_text()

        eventually(shows_two, timeout=90)
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        log.close()
