"""Registered exactly while serving, under real servers."""

from __future__ import annotations

import enum
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from etcd_core.testing import eventually
from serving import APPS, PATIENCE, Registry, ServerProcess, Start

pytestmark = pytest.mark.timeout(180)


class How(enum.Enum):
    """What the stopping signal is sent to."""

    PARENT = "the process that was started"
    GROUP = "the whole process group, as a terminal's Ctrl-C is"
    RELOADER = "the process that serves, then its parent: ServerProcess.interrupt_reloader()"


@dataclass(frozen=True)
class Case:
    name: str
    command: str
    stop: int = signal.SIGTERM
    how: How = How.PARENT
    code: int | None = 0
    debug: bool = False
    full: bool = False
    by_ttl: bool = False
    """Nothing runs in the process that serves when it is stopped."""
    needs: str = ""
    """A module that may be missing."""

    @property
    def workers(self) -> int:
        found = re.search(r"(?:-w|--workers) (\d)", self.command)
        return int(found[1]) if found else 1


GUNICORN = "-m gunicorn -b 127.0.0.1:PORT"
UVICORN = "-m uvicorn --port PORT"
# On a busy machine it would not wait for the first answer of a worker.
UVICORN_4 = f"{UVICORN} --workers 4 --timeout-worker-healthcheck 60"
HYPERCORN = "-m hypercorn -b 127.0.0.1:PORT"
GRANIAN = "-m granian --port PORT --interface"
DJANGO = "djsite.wsgi:application"
ASGI = "djsite.asgi:application"
FLASK = "flask_site:create_app()"
ASGI_FLASK = "through_asgiref:application"
UVICORN_WORKER = "-k uvicorn_worker.UvicornWorker"
TERM = signal.SIGTERM
INT = signal.SIGINT

# The servers of which each needs a row in any run, then what is shown with --full.
CASES = [
    Case("runserver-noreload-term", "-m django runserver --noreload PORT", code=-TERM),
    Case("runserver-reload-int", "-m django runserver PORT", INT, How.RELOADER, None),
    Case("flask-run-term", "-m flask run -p PORT", code=-TERM),
    Case("flask-debug-int", "-m flask run --debug -p PORT", INT, How.RELOADER, None, debug=True),
    Case("gunicorn-flask-4", f"{GUNICORN} -w 4 {FLASK}"),
    Case("gunicorn-django-preload-2", f"{GUNICORN} --preload -w 2 {DJANGO}"),
    Case("gunicorn-gthread-2", f"{GUNICORN} -k gthread -w 2 {FLASK}"),
    Case("gunicorn-gthread-preload-4-int", f"{GUNICORN} -k gthread --preload -w 4 {FLASK}", INT),
    Case("gunicorn-gevent-2", f"{GUNICORN} -k gevent -w 2 {FLASK}", needs="gevent"),
    Case(
        "gunicorn-gevent-preload-2-int", f"{GUNICORN} -k gevent --preload -w 2 {FLASK}", INT,
        needs="gevent",
    ),
    Case("uvicorn-1", f"{UVICORN} {ASGI}", code=-TERM),
    Case("uvicorn-asgiref-4", f"{UVICORN_4} {ASGI_FLASK}", code=None, needs="asgiref"),
    Case("hypercorn-1", f"{HYPERCORN} {ASGI}", needs="hypercorn"),
    Case("waitress", f"-m waitress --listen 127.0.0.1:PORT {DJANGO}", code=-TERM, needs="waitress"),
    Case("daphne", f"-m daphne -p PORT {ASGI}", needs="daphne"),
]  # fmt: skip
FULL = [
    Case("runserver-noreload-int", "-m django runserver --noreload PORT", INT),
    Case("runserver-reload-term", "-m django runserver PORT", code=None, by_ttl=True),
    Case("flask-run-int", "-m flask run -p PORT", INT, code=None),
    Case("flask-debug-term", "-m flask run --debug -p PORT", code=None, debug=True, by_ttl=True),
    Case("app-run-term", "flask_site.py", code=-TERM),
    Case("app-run-debug-int", "flask_site.py", INT, How.RELOADER, None, debug=True),
    Case("gunicorn-django-1", f"{GUNICORN} {DJANGO}"),
    Case("gunicorn-django-preload-4", f"{GUNICORN} --preload -w 4 {DJANGO}"),
    Case("gunicorn-flask-1", f"{GUNICORN} {FLASK}"),
    Case("gunicorn-flask-int", f"{GUNICORN} -w 2 {FLASK}", INT, How.GROUP),
    Case("gunicorn-gthread-4", f"{GUNICORN} -k gthread -w 4 {DJANGO}"),
    Case("gunicorn-gevent-preload-4", f"{GUNICORN} -k gevent --preload -w 4 {DJANGO}",
         needs="gevent"),
    Case("gunicorn-gevent-int", f"{GUNICORN} -k gevent -w 4 {FLASK}", INT, How.GROUP,
         needs="gevent"),
    Case("gunicorn-asgi-2", f"{GUNICORN} -k asgi -w 2 {ASGI}", needs="gunicorn.workers.gasgi"),
    Case("gunicorn-asgi-preload-2", f"{GUNICORN} -k asgi --preload -w 2 {ASGI}",
         needs="gunicorn.workers.gasgi"),
    Case("gunicorn-uvicorn-worker-4", f"{GUNICORN} {UVICORN_WORKER} -w 4 {ASGI}",
         needs="uvicorn_worker"),
    Case("gunicorn-uvicorn-worker-preload-4", f"{GUNICORN} {UVICORN_WORKER} --preload -w 4 {ASGI}",
         needs="uvicorn_worker"),
    Case("gunicorn-reuse-port-2", f"{GUNICORN} --reuse-port -w 2 {FLASK}"),
    Case("gunicorn-systemd-2", f"activated.py -m gunicorn -w 2 {FLASK}"),
    Case("gunicorn-systemd-preload-2", f"activated.py -m gunicorn --preload -w 2 {FLASK}"),
    Case("uvicorn-int", f"{UVICORN} {ASGI}", INT, code=None),
    Case("uvicorn-4", f"{UVICORN_4} {ASGI}", code=None),
    Case("uvicorn-4-int", f"{UVICORN_4} {ASGI_FLASK}", INT, How.GROUP, None,
         needs="asgiref"),
    Case("uvicorn-no-lifespan", f"{UVICORN} --lifespan off {ASGI}", code=-TERM),
    Case("uvicorn-reload-int", f"{UVICORN} --reload {ASGI}", INT, How.GROUP, None),
    Case("uvicorn-asgiref-1", f"{UVICORN} {ASGI_FLASK}", code=-TERM, needs="asgiref"),
    Case("uvicorn-asyncio-1", f"{UVICORN} --loop asyncio through_a2wsgi:application", code=-TERM,
         needs="a2wsgi"),
    Case("uvicorn-asyncio-4", f"{UVICORN_4} --loop asyncio {ASGI_FLASK}", code=None,
         needs="asgiref"),
    Case("uvicorn-uvloop-4", f"{UVICORN_4} --loop uvloop {ASGI_FLASK}", code=None, needs="uvloop"),
    Case("uvicorn-a2wsgi-1", f"{UVICORN} through_a2wsgi:application", code=-TERM, needs="a2wsgi"),
    Case("hypercorn-2", f"{HYPERCORN} -w 2 {ASGI}", code=None, needs="hypercorn"),
    Case("hypercorn-4-int", f"{HYPERCORN} -w 4 {ASGI}", INT, How.GROUP, None, needs="hypercorn"),
    Case("hypercorn-reload-int", f"{HYPERCORN} --reload {ASGI}", INT, How.GROUP, None,
         needs="hypercorn"),
    Case("hypercorn-wsgi", f"{HYPERCORN} wsgi:flask_site:app", needs="hypercorn"),
    Case("hypercorn-uvloop-2", f"{HYPERCORN} -k uvloop -w 2 wsgi:flask_site:app", code=None,
         needs="uvloop"),
    Case("hypercorn-trio-2", f"{HYPERCORN} -k trio -w 2 beside:application", code=None,
         needs="trio"),
    Case("uvicorn-systemd-uvloop", f"activated.py -m uvicorn --fd 3 --loop uvloop {ASGI_FLASK}",
         code=-TERM, needs="uvloop"),
    Case("daphne-systemd", "activated.py -m daphne --fd 3 beside:application", needs="daphne"),
    Case("granian-asgi", f"{GRANIAN} asgi {ASGI}", needs="granian"),
    Case("granian-wsgi", f"{GRANIAN} wsgi flask_site:app", needs="granian"),
    Case("granian-wsgi-2-int", f"{GRANIAN} wsgi --workers 2 flask_site:app", INT, needs="granian"),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=case.name) for case in CASES),
        *(pytest.param(case, id=case.name, marks=pytest.mark.full) for case in FULL),
    ],
)
def test_registered_while_serving(
    case: Case, registry: Registry, start: Start, tmp_path: Path
) -> None:
    if case.needs and not find_spec(case.needs):
        pytest.skip(f"{case.needs} is not installed")
    project = project_files()
    server = start(
        *case.command.split(" "),
        TEST_DEBUG="1" if case.debug else "0",
        TEST_TTL="5" if case.by_ttl else "600",
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    # By no request: nobody sends one to a service that is not registered yet.
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.wait_registered(case.workers)
    server.wait_serving()
    assert server.output.count(": in place") == case.workers
    locks = tmp_path / "etcd-core"
    assert len(list(locks.iterdir())) == 1
    assert project_files() == project
    code = stop(server, case)
    registry.wait_for()
    assert case.code is None or code == case.code, server.output
    eventually(lambda: len(registry.events) >= 2, PATIENCE, message="both events")
    assert registry.kinds() == ["added", "removed"], server.output
    # What a killed process leaves is found unlocked by the next one.
    eventually(lambda: case.by_ttl or not [*locks.iterdir()], PATIENCE, message="no lock file left")
    assert project_files() == project


@dataclass(frozen=True)
class Program:
    server: str
    code: int | None = -TERM
    by_request: bool = False
    """Nothing before the first request is a sign that it serves."""
    full: bool = True


PROGRAMS = [
    Program("waitress", full=False),
    Program("wsgiref"),
    Program("gevent"),
    Program("gevent-late"),
    Program("uvloop"),
    Program("granian"),
    Program("one-by-one", by_request=True, full=False),
]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(each, id=each.server, marks=[pytest.mark.full] if each.full else [])
        for each in PROGRAMS
    ],
)
def test_programs_that_serve_by_hand(program: Program, registry: Registry, start: Start) -> None:
    server = start("by_hand.py", program.server, "PORT", TEST_APP="none")
    server.wait_open()
    if program.by_request:
        assert registry.events == []
        server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    server.wait_serving()
    assert server.stop() == program.code, server.output
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"], server.output


@pytest.mark.full
def test_flask_under_an_asgi_server_that_listens_in_rust(registry: Registry, start: Start) -> None:
    if not find_spec("granian"):
        pytest.skip("granian is not installed")
    server = start(*GRANIAN.split(), "asginl", ASGI_FLASK)
    registry.wait_for(f"127.0.0.1:{server.port}")
    # Not stopped by SIGTERM: one in fifty of its workers then hangs, without us too.


# A program that loads the application may fork, of which Python warns where there is a thread.
LOADS = """
import os, sys, threading, warnings
{load}
assert threading.enumerate() == [threading.main_thread()]
assert not {{"grpc", "google.protobuf"}} & set(sys.modules)
warnings.simplefilter("error")
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("nothing begun")
"""


@pytest.mark.parametrize(
    "load", ["import flask_site", "import django; django.setup()", "import djsite.wsgi"]
)
def test_loading_an_application_begins_nothing(registry: Registry, start: Start, load: str) -> None:
    server = start("-c", LOADS.format(load=load), TEST_TELL_THREADS="1")
    assert server.wait() == 0, server.output
    assert server.output == "nothing begun\n"
    assert registry.events == []


@pytest.mark.parametrize(
    "command",
    ["flask_site.py", pytest.param("-m flask run --debug -p PORT", marks=pytest.mark.full)],
)
def test_a_reloaders_parent_begins_nothing_where_it_binds(
    registry: Registry, start: Start, command: str
) -> None:
    server = start(*command.split(" "), TEST_DEBUG="1", TEST_TELL_THREADS="1")
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.output.count("starts the thread etcd-host\n") == 1, server.output
    server.interrupt_reloader()
    registry.wait_for()


def stop(server: ServerProcess, case: Case) -> int:
    if case.how is How.RELOADER:
        return server.interrupt_reloader()
    if case.how is How.GROUP:
        server.signal_group(case.stop)
        return server.wait()
    if "granian" in case.command:
        return stop_granian(server, case.stop)
    return server.stop(case.stop)


def stop_granian(server: ServerProcess, number: int) -> int:
    """Signal its parent, in which nothing of ours runs and which now and then hangs by itself.

    It has then said "Shutting down", and told no worker; so they are told here.
    """
    server.process.send_signal(number)
    try:
        return server.wait(15)
    except subprocess.TimeoutExpired:
        assert "Shutting down granian" in server.output
        assert "Stopping worker" not in server.output
        for child in server.children():
            child.terminate()
        return 0


def project_files() -> set[Path]:
    """Return what is in the folder that the servers run in, but for compiled modules."""
    return {path for path in APPS.rglob("*") if "__pycache__" not in path.parts}


# A process that takes itself for a server then registers without listening; and it tells of the
# thread that begins with it, since a command may be over before that comes to anything.
EAGER = {
    "TEST_REGISTER": "true",
    "TEST_SERVICE_ADDRESS": "shop.example:80",
    "TEST_TELL_THREADS": "1",
}


def tried_to_register(server: ServerProcess) -> bool:
    return "starts the thread etcd-host" in server.output


# Each with what it says when it has done its work.
COMMANDS = {
    "-m django migrate": "Applying django_etcd",
    "-m django check": "no issues",
    "-m django shell -c print(6*7)": "42",
    "-m flask routes": "health",
    "-m flask hello": "hello",
    "typed.py print(6*7) -m flask shell": "42",
    f"{GUNICORN} --check-config {DJANGO}": "",
}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param(
            command,
            said,
            marks=pytest.mark.full if command == "-m django check" else [],
        )
        for command, said in COMMANDS.items()
    ],
)
def test_commands_never_register(command: str, said: str, registry: Registry, start: Start) -> None:
    server = start(*command.split(" "), **EAGER)
    assert server.wait(60) == 0, server.output
    assert said in server.output
    assert registry.events == []
    assert not tried_to_register(server)


@dataclass(frozen=True)
class Run:
    command: str
    processes: int
    needs: str = ""
    full: bool = False


CELERY = "-m celery -A celery_site:celery_app worker"
RUNS = [
    Run(f"{GUNICORN} -w 2 running_site:create_app()", 2, full=True),
    Run(f"{GUNICORN} -w 2 --preload running_site:create_app()", 2),
    Run("-m flask --app running_site run -p PORT", 1, full=True),
    Run("-m flask --app running_site run --debug -p PORT", 1),
    Run(f"{CELERY} -c 2 -l info", 2, "celery"),
    Run(f"{CELERY} -P threads -l info", 1, "celery", full=True),
]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=run.command, marks=[pytest.mark.full] if run.full else [])
        for run in RUNS
    ],
)
def test_when_running(run: Run, registry: Registry, start: Start) -> None:
    if run.needs and not find_spec(run.needs):
        pytest.skip(f"{run.needs} is not installed")
    server = start(*run.command.split(" "), **EAGER)
    server.wait_said("running in", run.processes)
    pids = {line.split()[-1] for line in server.output.splitlines() if "running in" in line}
    assert len(pids) == run.processes
    assert str(server.pid) not in pids or run.processes == 1
    if run.needs == "celery":
        # Its end takes six seconds, and what it would have started it has when it is ready.
        server.wait_said(" ready.")
        server.signal_group(signal.SIGKILL)
    else:
        server.signal_group(signal.SIGINT)
    server.wait()
    assert server.output.count("running in") == run.processes
    # Of these the ones of Celery alone load an application that has something to register.
    assert registry.events == []
    assert not tried_to_register(server)


def test_when_running_runs_nothing_for_a_check(start: Start) -> None:
    server = start(*GUNICORN.split(), "--check-config", "running_site:create_app()")
    assert server.wait(60) == 0
    assert "running in" not in server.output


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("-m flask run -p PORT", id="flask"),
        pytest.param(f"{GUNICORN} {DJANGO}", id="django", marks=pytest.mark.full),
    ],
)
def test_told_to_register_or_not_to(registry: Registry, start: Start, command: str) -> None:
    silent = start(*command.split(" "), TEST_REGISTER="false", TEST_TELL_THREADS="1")
    silent.wait_serving()
    # One that began later had time enough to register, so this one had.
    told = start(*command.split(" "), TEST_REGISTER="true", TEST_TELL_THREADS="1")
    registry.wait_for(f"127.0.0.1:{told.port}")
    assert tried_to_register(told)
    assert not tried_to_register(silent)
    told.stop()
    silent.stop()
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"]


def test_a_process_that_runs_tests_registers_when_told_to(registry: Registry, start: Start) -> None:
    server = start("-m", "unittest", "served_while_testing", TEST_REGISTER="auto")
    assert server.wait() == 0, server.output
    registry.wait_for()
    assert registry.kinds() == ["added", "removed"]


# In short pauses: Python looks for signals between two steps of the program, so signal.pause()
# would wait for ever for one that came while the thread waited for the interpreter's lock.
WAITS = "import time\nwhile True: time.sleep(0.05)"


@pytest.mark.parametrize("module", ["flask_site", "djsite.wsgi"])
def test_told_to_and_where_it_registers_without_a_socket(
    registry: Registry, start: Start, module: str
) -> None:
    server = start("-c", f"import {module}\n{WAITS}", **EAGER)
    registry.wait_for("shop.example:80")
    assert server.stop() == -signal.SIGTERM, server.output
    registry.wait_for()


def test_a_reloaders_parent_does_not_register_even_when_told_to(
    registry: Registry, start: Start
) -> None:
    server = start("-m", "flask", "run", "--debug", "-p", "PORT", **EAGER)
    server.wait_serving()
    registry.wait_for("shop.example:80")
    server.interrupt_reloader()
    registry.wait_for()
    assert server.output.count(": in place") == 1, server.output


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.full)])
def test_a_handler_of_sigterm_that_the_program_has_is_kept(
    registry: Registry, start: Start, moment: str
) -> None:
    server = start("flask_site.py", TEST_OWN_SIGTERM=moment)
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.stop() == 7, server.output
    # Its time to live is ten minutes.
    registry.wait_for()
    assert server.output.count("the program's own handler") == 1
    assert registry.kinds() == ["added", "removed"]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("-m flask run -p TAKEN", id="flask"),
        pytest.param("-m django runserver --noreload TAKEN", id="django", marks=pytest.mark.full),
        pytest.param(f"-m uvicorn --port TAKEN {ASGI}", id="uvicorn", marks=pytest.mark.full),
        pytest.param(f"-m gunicorn -b 127.0.0.1:TAKEN {FLASK}", id="gunicorn",
                     marks=pytest.mark.full),
    ],
)  # fmt: skip
def test_a_port_in_use_is_never_registered(registry: Registry, start: Start, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        server = start(*command.replace("TAKEN", port).split(" "), TEST_TELL_THREADS="1")
        assert server.wait() != 0, server.output
    assert registry.events == []


# From the first answer of the new process; it takes longer than that to load the application.
_SOON = 10.0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("SITE/manage.py runserver PORT", id="runserver", marks=pytest.mark.full),
        pytest.param("SITE/flask_site.py", id="flask"),
        pytest.param(
            f"-m uvicorn --reload --app-dir SITE --reload-dir SITE --port PORT {ASGI}",
            id="uvicorn",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_change_of_a_file_takes_the_entry_along(
    registry: Registry, start: Start, tmp_path: Path, command: str
) -> None:
    site = tmp_path / "site"
    shutil.copytree(APPS, site, ignore=shutil.ignore_patterns("__pycache__"))
    words = command.replace("SITE", str(site)).split(" ")
    server = start(*words, PYTHONPATH=str(site), TEST_DEBUG="1")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    before = server.get()
    changed = site / "told.py"

    def noticed() -> bool:
        if len(registry.events) > 1:
            return True
        # The reloader notes the first time it sees; only a later one is a change.
        changed.write_text(f"{changed.read_text()}# changed\n")
        return False

    eventually(noticed, PATIENCE, interval=0.5, message="the entry of the old process gone")
    eventually(lambda: server.get() != before, PATIENCE, message="the new process answers")
    answered = time.monotonic()
    registry.wait_for(f"127.0.0.1:{server.port}")
    if "uvicorn" in command:
        server.signal_group(signal.SIGINT)
        server.wait()
    else:
        server.interrupt_reloader()
    registry.wait_for()
    assert registry.kinds() == ["added", "removed", "added", "removed"], server.output
    assert registry.times[2] - answered < _SOON
