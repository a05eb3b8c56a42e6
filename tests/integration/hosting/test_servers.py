"""Registered exactly while serving, under real servers."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from etcd_core.testing import eventually
from serving import Registry, Start

pytestmark = pytest.mark.timeout(180)


@dataclass(frozen=True)
class Case:
    name: str
    command: str
    stop: int = signal.SIGTERM
    group: bool = False
    """Signal the whole process group, as a terminal's Ctrl-C does."""
    code: int | None = 0
    debug: bool = False
    slow: bool = False
    needs: str = ""
    """A module that may be missing."""

    @property
    def workers(self) -> int:
        return 4 if "-w 4 " in self.command or "--workers 4" in self.command else 1


GUNICORN = "-m gunicorn -b 127.0.0.1:PORT"
DJANGO = "djsite.wsgi:application"
ASGI = "djsite.asgi:application"
FLASK = "flask_site:create_app()"
TERM = signal.SIGTERM
INT = signal.SIGINT

CASES = [
    Case("runserver-noreload-term", "-m django runserver --noreload PORT", code=-TERM),
    Case("runserver-noreload-int", "-m django runserver --noreload PORT", INT, slow=True),
    Case("runserver-reload-int", "-m django runserver PORT", INT, group=True, code=None),
    Case("flask-run-term", "-m flask run -p PORT", code=-TERM),
    Case("flask-run-int", "-m flask run -p PORT", INT, slow=True, code=None),
    Case(
        "flask-debug-int", "-m flask run --debug -p PORT", INT, group=True, code=None, debug=True
    ),
    Case("app-run-term", "flask_site.py", code=-TERM, slow=True),
    Case("gunicorn-django-1", f"{GUNICORN} {DJANGO}"),
    Case("gunicorn-django-preload-4", f"{GUNICORN} --preload -w 4 {DJANGO}"),
    Case("gunicorn-flask-1", f"{GUNICORN} {FLASK}", slow=True),
    Case("gunicorn-flask-4", f"{GUNICORN} -w 4 {FLASK}"),
    Case("gunicorn-gthread-preload-int", f"{GUNICORN} -k gthread --preload {FLASK}", INT),
    Case("uvicorn-1", "-m uvicorn --port PORT djsite.asgi:application", code=-TERM),
    Case(
        "uvicorn-4", "-m uvicorn --workers 4 --port PORT djsite.asgi:application", code=None,
        slow=True,
    ),
    Case("gunicorn-gevent", f"{GUNICORN} -k gevent {FLASK}", needs="gevent"),
    Case(
        "gunicorn-gevent-preload-4-int", f"{GUNICORN} -k gevent --preload -w 4 {DJANGO}", INT,
        needs="gevent", slow=True,
    ),
    Case(
        "gunicorn-uvicorn-worker-4", f"{GUNICORN} -k uvicorn_worker.UvicornWorker -w 4 {ASGI}",
        needs="uvicorn_worker", slow=True,
    ),
    Case(
        "uvicorn-no-lifespan", f"-m uvicorn --lifespan off --port PORT {ASGI}", code=-TERM,
        slow=True,
    ),
    Case(
        "uvicorn-reload-int", f"-m uvicorn --reload --port PORT {ASGI}", INT, group=True, code=None,
        slow=True,
    ),
    Case("hypercorn-1", f"-m hypercorn -b 127.0.0.1:PORT {ASGI}", needs="hypercorn"),
    Case(
        "hypercorn-4-int", f"-m hypercorn -w 4 -b 127.0.0.1:PORT {ASGI}", INT, group=True,
        code=None, needs="hypercorn", slow=True,
    ),
    Case(
        "waitress", f"-m waitress --listen 127.0.0.1:PORT {DJANGO}", code=-TERM, needs="waitress"
    ),
    Case(
        "granian-asgi", f"-m granian --interface asgi --port PORT {ASGI}", needs="granian",
        slow=True,
    ),
    Case("daphne", f"-m daphne -p PORT {ASGI}", needs="daphne", slow=True),
]  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
        for case in CASES
    ],
)
def test_registered_while_serving(case: Case, registry: Registry, start: Start) -> None:
    if case.needs and not find_spec(case.needs):
        pytest.skip(f"{case.needs} is not installed")
    server = start(*case.command.split(" "), TEST_DEBUG="1" if case.debug else "0")
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    eventually(lambda: server.output.count(": in place") == case.workers, message="all workers")
    if case.group:
        server.signal_group(case.stop)
        code = server.wait()
    else:
        code = server.stop(case.stop)
    registry.wait_for()
    assert case.code is None or code == case.code, server.output
    eventually(lambda: len(registry.events) >= 2, message="both events")
    assert registry.kinds() == ["added", "removed"], server.output


COMMANDS = [
    "-m django migrate",
    "-m django check",
    "-m django shell -c print(1)",
    "-m flask routes",
    "-m flask hello",
    f"{GUNICORN} --check-config {DJANGO}",
]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(each, marks=[] if "shell" in each or "-m flask" in each else pytest.mark.slow)
        for each in COMMANDS
    ],
)
def test_commands_never_register(command: str, registry: Registry, start: Start) -> None:
    server = start(*command.split(" "))
    assert server.wait(60) == 0, server.output
    assert registry.events == []
    assert "is registered at" not in server.output
    assert ": in place" not in server.output


@dataclass(frozen=True)
class Run:
    command: str
    processes: int
    needs: str = ""
    slow: bool = False


RUNS = [
    Run(f"{GUNICORN} -w 2 running_site:create_app()", 2, slow=True),
    Run(f"{GUNICORN} -w 2 --preload running_site:create_app()", 2),
    Run("-m flask --app running_site run -p PORT", 1, slow=True),
    Run("-m flask --app running_site run --debug -p PORT", 1),
    Run("-m celery -A running_site:celery_app worker -c 2 -l info", 2, "celery", slow=True),
    Run("-m celery -A running_site:celery_app worker -P threads -l info", 1, "celery", slow=True),
]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=run.command, marks=[pytest.mark.slow] if run.slow else [])
        for run in RUNS
    ],
)
def test_when_running(run: Run, start: Start) -> None:
    if run.needs and not find_spec(run.needs):
        pytest.skip(f"{run.needs} is not installed")
    server = start(*run.command.split(" "))
    eventually(lambda: server.output.count("running in") == run.processes, 30, message=run.command)
    pids = {line.split()[-1] for line in server.output.splitlines() if "running in" in line}
    assert len(pids) == run.processes
    assert str(server.pid) not in pids or run.processes == 1
    server.signal_group(signal.SIGINT)
    server.wait()
    assert server.output.count("running in") == run.processes


def test_when_running_runs_nothing_for_a_check(start: Start) -> None:
    server = start(*GUNICORN.split(), "--check-config", "running_site:create_app()")
    assert server.wait(60) == 0
    assert "running in" not in server.output
