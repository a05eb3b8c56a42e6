import atexit
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import told  # noqa: F401
from flask import Flask, current_app, request

from etcd_core.hosting import listeners
from flask_etcd import Etcd

logging.basicConfig()
logging.getLogger("etcd_core").setLevel("INFO")

# Opened by hand: a metrics page, a debugger.
other_socket = socket.create_server(("127.0.0.1", 0)) if "TEST_OTHER_SOCKET" in os.environ else None
if "TEST_NO_PROC" in os.environ:
    listeners._FD_DIRECTORY = "/nonexistent"


def handle_sigterm(*_: object) -> None:
    """What a program of its own mind does with the signal."""
    os.write(1, b"the program's own handler\n")
    sys.exit(7)


if os.environ.get("TEST_OWN_SIGTERM") == "before":
    signal.signal(signal.SIGTERM, handle_sigterm)

etcd = Etcd()


def is_ready() -> bool:
    """What the test wrote for this process, or for all of them."""
    assert current_app.config["ETCD_READY"]
    words = Path(os.environ["TEST_NOT_READY"]).read_text().split()
    if "raise" in words:
        raise RuntimeError("no database")
    while "hang" in words:
        time.sleep(60)
    return "all" not in words and str(os.getpid()) not in words


def run_children() -> list[int]:
    """Every way a worker makes a child; each child ends at once."""
    codes = [subprocess.run([sys.executable, "-c", ""], preexec_fn=int).returncode]
    codes.append(subprocess.run(["true"]).returncode)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    codes.append(child.exitcode or 0)
    pid = os.fork()
    if pid == 0:
        atexit._run_exitfuncs()
        os._exit(0)
    codes.append(os.waitpid(pid, 0)[1])
    return codes


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        ETCD_ENDPOINTS=os.environ["TEST_ENDPOINTS"],
        ETCD_PREFIX=os.environ["TEST_PREFIX"],
        ETCD_SERVICE_NAME=os.environ["TEST_SERVICE"],
        ETCD_SERVICE_METADATA={"framework": "flask"},
        ETCD_SERVICE_TTL=os.environ.get("TEST_TTL", "600"),
        ETCD_TIMEOUT=os.environ.get("TEST_TIMEOUT", "2"),
    )
    for name in ("SERVICE_ADDRESS", "SERVICE_ID", "REGISTER", "DRAIN", "READY", "READY_INTERVAL"):
        if f"TEST_{name}" in os.environ:
            app.config[f"ETCD_{name}"] = os.environ[f"TEST_{name}"]
    etcd.init_app(app)
    app.register_blueprint(etcd.health_blueprint(), url_prefix="/etcd")

    page = etcd.status_blueprint(guard=lambda: request.args.get("who") == "admin")
    app.register_blueprint(page, url_prefix="/status")

    @app.get("/")
    def hello() -> dict[str, int]:
        return {"pid": os.getpid()}

    @app.get("/hang")
    def hang() -> str:
        time.sleep(600)
        return ""

    @app.get("/slow/<float:seconds>")
    def slow(seconds: float) -> str:
        print("slow begins", flush=True)
        time.sleep(seconds)
        return "done"

    @app.get("/registered")
    def registered() -> dict[str, bool]:
        registration = etcd.registration
        return {"registered": registration is not None and registration.registered}

    @app.get("/ready/<state>")
    def ready(state: str) -> dict[str, int]:
        etcd.ready(state == "yes")
        return {"pid": os.getpid()}

    @app.get("/children")
    def children() -> dict[str, list[int]]:
        return {"codes": run_children()}

    @app.cli.command("hello")
    def hello_command() -> None:
        click.echo("hello")

    return app


if "TEST_APP" not in os.environ:
    app = create_app()

if os.environ.get("TEST_OWN_SIGTERM") == "after":
    signal.signal(signal.SIGTERM, handle_sigterm)

if __name__ == "__main__":
    app.run(port=int(os.environ["TEST_PORT"]), debug=os.environ.get("TEST_DEBUG") == "1")
