"""``python -m etcd_core dev``, as a user runs it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from etcd_core.testing import EtcdServer, eventually
from etcd_core.testing._ports import free_ports, in_use

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="stops by signals")


@contextmanager
def dev(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "etcd_core", "dev", *args]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_lines(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().strip() for _ in range(6)]


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_a_signal_and_keeps_its_data(tmp_path: Path, number: int) -> None:
    (port,) = free_ports(1)
    with dev(tmp_path, "--port", str(port)) as process:
        ready, console, dynaconf, django, flask, how_to_stop = first_lines(process)
        url = f"http://127.0.0.1:{port}"
        assert ready.startswith("etcd ")
        assert ready.endswith(f"is ready at {url}, data in .etcd")
        assert console == f"etcd-core  export ETCD_ENDPOINTS={url}"
        assert dynaconf == f"Dynaconf   export ETCD_ENDPOINTS_FOR_DYNACONF='[\"{url}\"]'"
        assert django == f'Django     ETCD = {{"ENDPOINTS": ["{url}"]}}'
        assert flask == f'Flask      ETCD_ENDPOINTS = ["{url}"]'
        assert how_to_stop == "Ctrl-C stops it"
        assert b'"true"' in get(port, "/health")
        (etcd,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.communicate()[1] == ""
        assert not etcd.is_running()
    assert not in_use(port)
    assert (tmp_path / ".etcd" / "data" / "member").is_dir()
    with EtcdServer(data_dir=tmp_path / ".etcd" / "data", name="dev") as server:
        assert server.ctl("get", "a") == ""


def test_a_port_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = str(squatter.getsockname()[1])
        with dev(tmp_path, "--port", port, "--data", "elsewhere") as process:
            output, error = process.communicate(timeout=30)
            assert process.returncode == 1
    assert output == ""
    text = f"port {port} of 127.0.0.1 is in use: stop what listens there, or use --port"
    assert error == f"etcd_core dev: {text}\n"


def test_etcd_that_ends_by_itself_is_an_error(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with dev(tmp_path, "--port", str(port), "--data", "d") as process:
        first_lines(process)
        (etcd,) = psutil.Process(process.pid).children()
        etcd.kill()
        _, error = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "etcd ended by itself, see" in error
    assert str(tmp_path / "d" / "etcd.log") in error


def test_etcd_ends_with_a_killed_command(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with dev(tmp_path, "--port", str(port)) as process:
        first_lines(process)
        process.kill()
    eventually(lambda: not in_use(port), timeout=30, message="etcd is gone")


def test_no_etcd_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_BIN", os.fspath(tmp_path / "none"))
    with dev(tmp_path) as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "ETCD_BIN" in error


def test_help_warns_of_the_bundled_release(tmp_path: Path) -> None:
    with dev(tmp_path, "--help") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "for development and tests only" in output
    assert "3.5.0 to\n3.5.2" in output
    assert "default: 2379" in output
