"""Registered exactly while serving, under real servers."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from etcd_core.testing import eventually
from serving import APPS, PATIENCE, Registry, ServerProcess, Start

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
    Case("gunicorn-gthread-4", f"{GUNICORN} -k gthread -w 4 {DJANGO}", slow=True),
    Case(
        "gunicorn-gthread-preload-4-int", f"{GUNICORN} -k gthread --preload -w 4 {FLASK}", INT
    ),
    Case("uvicorn-1", "-m uvicorn --port PORT djsite.asgi:application", code=-TERM),
    Case(
        "uvicorn-4", "-m uvicorn --workers 4 --port PORT djsite.asgi:application", code=None,
        slow=True,
    ),
    Case("gunicorn-gevent-4", f"{GUNICORN} -k gevent -w 4 {FLASK}", needs="gevent"),
    Case(
        "gunicorn-gevent-preload-4-int", f"{GUNICORN} -k gevent --preload -w 4 {DJANGO}", INT,
        needs="gevent", slow=True,
    ),
    Case(
        "gunicorn-uvicorn-worker-4", f"{GUNICORN} -k uvicorn_worker.UvicornWorker -w 4 {ASGI}",
        needs="uvicorn_worker", slow=True,
    ),
    Case(
        "gunicorn-uvicorn-worker-preload-4",
        f"{GUNICORN} -k uvicorn_worker.UvicornWorker --preload -w 4 {ASGI}",
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
def test_registered_while_serving(
    case: Case, registry: Registry, start: Start, tmp_path: Path
) -> None:
    if case.needs and not find_spec(case.needs):
        pytest.skip(f"{case.needs} is not installed")
    project = project_files()
    server = start(
        *case.command.split(" "),
        TEST_DEBUG="1" if case.debug else "0",
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    eventually(lambda: server.output.count(": in place") == case.workers, message="all workers")
    locks = tmp_path / "etcd-core"
    assert len(list(locks.iterdir())) == 1
    assert project_files() == project
    if case.group:
        server.signal_group(case.stop)
        code = server.wait()
    else:
        code = server.stop(case.stop)
    registry.wait_for()
    assert case.code is None or code == case.code, server.output
    eventually(lambda: len(registry.events) >= 2, message="both events")
    assert registry.kinds() == ["added", "removed"], server.output
    eventually(lambda: not list(locks.iterdir()), message="no lock file left")
    assert project_files() == project


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
    "-m django migrate": "Applying contenttypes",
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
            marks=[] if "shell" in command or "flask" in command else pytest.mark.slow,
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
    slow: bool = False


RUNS = [
    Run(f"{GUNICORN} -w 2 running_site:create_app()", 2, slow=True),
    Run(f"{GUNICORN} -w 2 --preload running_site:create_app()", 2),
    Run("-m flask --app running_site run -p PORT", 1, slow=True),
    Run("-m flask --app running_site run --debug -p PORT", 1),
    Run("-m celery -A celery_site:celery_app worker -c 2 -l info", 2, "celery", slow=True),
    Run("-m celery -A celery_site:celery_app worker -P threads -l info", 1, "celery", slow=True),
]


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(run, id=run.command, marks=[pytest.mark.slow] if run.slow else [])
        for run in RUNS
    ],
)
def test_when_running(run: Run, registry: Registry, start: Start) -> None:
    if run.needs and not find_spec(run.needs):
        pytest.skip(f"{run.needs} is not installed")
    server = start(*run.command.split(" "), **EAGER)
    eventually(lambda: server.output.count("running in") == run.processes, 30, message=run.command)
    pids = {line.split()[-1] for line in server.output.splitlines() if "running in" in line}
    assert len(pids) == run.processes
    assert str(server.pid) not in pids or run.processes == 1
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
    ["-m flask run -p PORT", f"{GUNICORN} {DJANGO}"],
    ids=["flask", "django"],
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


@pytest.mark.parametrize("module", ["flask_site", "djsite.wsgi"])
def test_told_to_and_where_it_registers_without_a_socket(
    registry: Registry, start: Start, module: str
) -> None:
    server = start("-c", f"import signal, {module}; signal.pause()", **EAGER)
    registry.wait_for("shop.example:80")
    assert server.stop() == -signal.SIGTERM, server.output
    registry.wait_for()


def test_a_reloaders_parent_does_not_register_even_when_told_to(
    registry: Registry, start: Start
) -> None:
    server = start("-m", "flask", "run", "--debug", "-p", "PORT", **EAGER)
    server.wait_serving()
    registry.wait_for("shop.example:80")
    server.signal_group(signal.SIGINT)
    server.wait(30)
    registry.wait_for()
    assert server.output.count(": in place") == 1, server.output


@pytest.mark.parametrize("moment", ["before", "after"])
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


# What a new process takes to load the application is the better part of it.
_LONGEST_GAP = 10.0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("SITE/manage.py runserver PORT", id="runserver"),
        pytest.param("SITE/flask_site.py", id="flask", marks=pytest.mark.slow),
        pytest.param(
            f"-m uvicorn --reload --app-dir SITE --reload-dir SITE --port PORT {ASGI}",
            id="uvicorn",
            marks=pytest.mark.slow,
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
    registry.wait_for(f"127.0.0.1:{server.port}")
    assert server.get() != before
    server.signal_group(signal.SIGINT)
    server.wait()
    registry.wait_for()
    assert registry.kinds() == ["added", "removed", "added", "removed"], server.output
    assert registry.times[2] - registry.times[1] < _LONGEST_GAP
