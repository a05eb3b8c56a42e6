"""``manage.py etcd``, ``flask etcd``, the health endpoints, and leader-only commands."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from etcd_core import Client, Descriptor
from etcd_core.cli import build_group
from etcd_core.hosting import HostOptions, ServiceHost
from etcd_core.hosting.health import check
from etcd_core.testing import EtcdServer, eventually
from serving import PATIENCE, Registry, ServerProcess, Start

pytestmark = pytest.mark.timeout(180)

FLASK = ["-m", "flask", "etcd"]
DJANGO = ["-m", "django", "etcd"]


@pytest.fixture
def client(registry: Registry) -> Client:
    return registry.client


def run(start: Start, *command: str, code: int = 0, **env: str) -> str:
    process = start(*command, **env)
    assert process.process.wait(120) == code, process.output
    return process.output


Ask = Callable[..., str]


@pytest.fixture
def ask(registry: Registry) -> Iterator[Ask]:
    """Runs the group in this process; the way it is mounted is tested apart."""
    hosts: list[ServiceHost] = []

    def run_group(
        *words: str, code: int = 0, endpoint: str = registry.endpoint, **more: object
    ) -> str:
        options = HostOptions.parse(
            {"ENDPOINTS": endpoint, "PREFIX": registry.prefix, "TIMEOUT": 20, **more}
        )
        hosts.append(ServiceHost(options))
        result = CliRunner().invoke(build_group(lambda: hosts[-1]), words)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    yield run_group
    for host in hosts:
        host.close()


@pytest.mark.parametrize(
    "mount",
    [
        pytest.param(FLASK, id="flask"),
        pytest.param(DJANGO, id="django"),
    ],
)
def test_group_is_mounted(start: Start, mount: list[str], client: Client) -> None:
    with client.register(Descriptor(name="pay", id="pay-1", address="10.0.0.1:80")):
        shown = json.loads(run(start, *mount, "services", "pay", "--json"))
    assert [(row["id"], row["address"]) for row in shown] == [("pay-1", "10.0.0.1:80")]


def test_group_shows_what_is_there(ask: Ask, client: Client) -> None:
    client.config_source("app").save({"db": {"password": "hunter2", "host": "db1"}})
    me = Descriptor(
        name="pay", id="pay-1", address="10.0.0.1:80", metadata={"zone": "a", "api-key": "hunter2"}
    )
    with client.register(me), client.lock("nightly"), client.campaign("chief", "me"):
        assert "registered" in ask("services")
        assert "zone=a" in ask("services")
        assert "hunter2" not in ask("services", "--json")
        (leader,) = json.loads(ask("leaders", "--json"))
        assert (leader["name"], leader["holder"], leader["waiting"]) == ("chief", "me", 0)
        assert leader["next"] == ""
        (lock,) = json.loads(ask("locks", "--json"))
        assert (lock["name"], lock["waiting"]) == ("nightly", 0)
    assert "app" in ask("config")
    (stored,) = json.loads(ask("config", "--json"))
    assert (stored["name"], stored["leaves"]) == ("app", 2)
    settings = ask("config", "app")
    assert "db1" in settings
    assert "hunter2" not in settings


def test_errors_are_one_line(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    assert ask("config", "missing", code=1).startswith("Error: ")
    told = ask("services", code=1, endpoint="127.0.0.1:1", TIMEOUT=0.3)
    assert told.count("etcd cannot be reached") == 1
    assert told.count("\n") == 1
    # Said once: what the command tells is not logged too.
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []


def test_what_is_not_there_is_named(ask: Ask, client: Client) -> None:
    under = f"{client.prefix}/services/"
    assert ask("services") == f"nothing under {under}\n"
    assert ask("locks") == f"nothing under {client.prefix}/locks/\n"
    assert ask("leaders", "--json") == "[]\n"
    with client.register(Descriptor(name="pay", id="pay-1", address="10.0.0.1:80")):
        told = ask("services", "pay", "other", code=1)
        assert "10.0.0.1:80" in told
        assert told.splitlines()[-1] == f"Error: nothing is registered under {under}other"
        assert ask("services", "other", "--json", code=1).startswith("[]\n")
    assert ask("drain", code=1) == "Error: no service is configured; name the one to drain\n"
    assert f"{under}pay/" in ask("drain", "pay")


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e9", "x"])
def test_drain_waits_for_a_time_that_there_is(ask: Ask, seconds: str) -> None:
    assert "--seconds" in ask("drain", "pay", "--seconds", seconds, code=2)


def test_nothing_in_etcd_steers_the_terminal(ask: Ask, client: Client) -> None:
    address = "\x1b[31mred\x1b]0;pwn\x07\u202e\n"
    client.raw.put(
        f"{client.prefix}/services/esc/x\x9b",
        json.dumps({"id": "x\x9b", "name": "esc", "address": address, "metadata": {"\x1b": "\r"}}),
    )
    client.config_source("app").save({"motd": "\x1b]0;pwn\x07", "name": "grün ✓"})
    for words in (("services",), ("config", "app"), ("config", "x\x1b")):
        told = ask(*words, code=int(words[-1] == "x\x1b"))
        assert all(line.isprintable() for line in told.splitlines())
        assert "\\x1b" in told
    assert "grün ✓" in ask("config", "app")
    (row,) = json.loads(ask("services", "--json"))
    assert row["address"] == address


def test_doctor(ask: Ask) -> None:
    assert ask("doctor").count("ok ") == 2
    assert ask("doctor", code=1, endpoint="127.0.0.1:1", TIMEOUT=0.3).count("FAILED") == 2


def test_watch_follows_until_interrupted(start: Start, registry: Registry) -> None:
    watching = start(*FLASK, "watch", "pay")
    with registry.client.register(Descriptor(name="pay", id="pay-1", address="10.0.0.1\x1b:80")):
        watching.wait_said("added     pay-1 10.0.0.1\\x1b:80")
    watching.wait_said("removed   pay-1")
    assert watching.stop(signal.SIGINT) == 0, watching.output


def console(registry: Registry, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m etcd_core`` in a shell: CLI stands for it."""
    cli = f"{shlex.quote(sys.executable)} -W error -m etcd_core --prefix {registry.prefix}"
    return subprocess.run(
        ["bash", "-c", command.replace("CLI", cli)],
        env={**os.environ, "ETCD_ENDPOINTS": registry.endpoint, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def put_instances(client: Client, count: int) -> None:
    for number in range(count):
        me = Descriptor(name="many", id=f"i{number}", address=f"10.0.0.{number}:80")
        client.raw.put(f"{client.prefix}/services/many/{me.id}", me.encode())


@pytest.mark.parametrize("command", ["services many", "services many --json", "watch many"])
@pytest.mark.parametrize("count", [pytest.param(3, marks=pytest.mark.full), 40])
def test_output_that_nobody_reads_any_more_ends_the_command(
    registry: Registry, command: str, count: int
) -> None:
    put_instances(registry.client, count)
    done = console(registry, f"CLI {command} | head -3; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert "i0" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("command", ["services", "watch many", "doctor"])
def test_output_that_cannot_be_written_is_one_line(registry: Registry, command: str) -> None:
    put_instances(registry.client, 1)
    done = console(registry, f"CLI {command} > /dev/full")
    assert done.stderr == "Error: cannot write the output: No space left on device\n"
    assert done.returncode == 1


def test_console_takes_options_and_variables(registry: Registry) -> None:
    put_instances(registry.client, 1)
    done = console(registry, "LC_ALL=C PYTHONUTF8=0 CLI services many")
    assert (done.returncode, done.stderr) == (0, "")
    assert "10.0.0.0:80" in done.stdout
    assert "etcd" in console(registry, "CLI --help").stdout
    for refused in (
        console(registry, "CLI --endpoints ftp://x services many"),
        console(registry, "CLI services", ETCD_ENDPOINTS="ftp://x"),
    ):
        assert refused.returncode == 2
        assert "the scheme must be http or https" in refused.stderr
    assert "ETCD_PASSWORD" in console(registry, "CLI --username app services").stderr


def test_console_logs_in() -> None:
    with EtcdServer(auth="rootpw") as server:
        for password, code in (("rootpw", 0), ("wrongpw", 1)):
            done = subprocess.run(
                [sys.executable, "-m", "etcd_core", "--username", "root", "doctor"],
                env={**os.environ, "ETCD_ENDPOINTS": server.endpoint, "ETCD_PASSWORD": password},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == code, done
            assert password not in done.stdout + done.stderr


def test_console_without_click_says_what_it_needs(registry: Registry) -> None:
    hide = "import sys; sys.modules['click'] = None; sys.argv[0] = 'etcd-core'\n"
    run_it = "from etcd_core.__main__ import main; sys.exit(main())"
    for words, code in ((["services"], 2), (["--help"], 0), (["dev", "--help"], 0)):
        done = subprocess.run(
            [sys.executable, "-c", hide + run_it, *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done
        assert ("etcd-core[cli]" in done.stderr) is (words[0] != "dev")


@pytest.mark.full
def test_djangos_own_options_are_taken(start: Start, client: Client) -> None:
    """As ``--settings`` and ``-v`` are by every management command."""
    with client.register(Descriptor(name="pay", id="pay-1", address="10.0.0.1:80")):
        shown = run(
            start, "-m", "django", "etcd", "--settings", "djsite.settings", "services", "pay",
            "--json", "-v", "2", "--no-color", "--pythonpath", ".", DJANGO_SETTINGS_MODULE="none",
        )  # fmt: skip
    assert "pay-1" in shown
    told = run(start, *DJANGO, "config", "missing", "--traceback", code=1)
    assert "Traceback" in told
    assert "Commands:" in run(start, *DJANGO, "--help")


@pytest.mark.full
def test_drain_command_marks_the_running_server(start: Start, registry: Registry) -> None:
    server = serving(start, registry, "-m gunicorn -b 127.0.0.1:PORT flask_site:create_app()")
    assert "draining shop" in run(start, *DJANGO, "drain", "--seconds", "0")
    assert registry.metadata() == [{"framework": "flask", "status": "draining"}]
    assert server.stop() == 0
    registry.wait_for()
    assert registry.kinds() == ["added", "modified", "removed"]


def serving(start: Start, registry: Registry, command: str, **env: str) -> ServerProcess:
    server = start(*command.split(), **env)
    server.wait_serving()
    registry.wait_for(f"127.0.0.1:{server.port}")
    return server


@pytest.mark.parametrize(
    "app",
    [
        "djsite.wsgi:application",
        pytest.param("flask_site:create_app()", marks=pytest.mark.full),
    ],
)
def test_health(start: Start, registry: Registry, app: str) -> None:
    server = serving(start, registry, f"-m gunicorn -b 127.0.0.1:PORT {app}")
    found = eventually(lambda: json.loads(server.get("/etcd/health")), PATIENCE, message="healthy")
    assert (found["status"], found["problems"]) == ("ok", [])
    assert found["etcd"]["connected"] is True
    assert found["registration"]["address"] == f"127.0.0.1:{server.port}"
    lease = found["registration"]
    assert 0 < lease["lease_remaining"] <= 600
    assert lease["lease_renewed"] + lease["lease_remaining"] == pytest.approx(600, abs=5)
    asked = urllib.request.Request(f"http://127.0.0.1:{server.port}/etcd/health", method="HEAD")
    with urllib.request.urlopen(asked, timeout=20) as answer:
        assert "no-store" in answer.headers["Cache-Control"]
    assert server.stop() == 0


@pytest.mark.parametrize("application", ["flask_site:create_app()", "djsite.wsgi:application"])
def test_health_is_503_while_not_ready(start: Start, registry: Registry, application: str) -> None:
    server = serving(start, registry, f"-m gunicorn -b 127.0.0.1:PORT {application}")
    eventually(lambda: server.get("/etcd/health"), PATIENCE, message="healthy")
    server.get("/ready/no")
    registry.wait_for()
    with pytest.raises(urllib.error.HTTPError) as raised:
        server.get("/etcd/health")
    assert raised.value.code == 503
    found = json.loads(raised.value.read())
    assert not (found["registration"] or {"registered": False})["registered"]
    assert found["problems"] == ["shop is not registered for this process"]
    raised.value.close()


def test_health_says_why_it_is_not_registered(registry: Registry) -> None:
    with EtcdServer(auth="rootpw") as server:
        host = ServiceHost(
            HostOptions.parse(
                {
                    "ENDPOINTS": server.endpoint,
                    "PREFIX": registry.prefix,
                    "SERVICE_NAME": "shop",
                    "USERNAME": "root",
                    "PASSWORD": "wr0ngpw",
                }
            )
        )
        host.register("127.0.0.1:1")

        def told() -> bool:
            problems = health_of(host)["problems"]
            return len(problems) == 1 and problems[0].startswith(
                "shop is not registered for this process: "
            )

        eventually(told, PATIENCE, message=str(health_of(host)))
        assert "wr0ngpw" not in json.dumps(health_of(host))
        assert "authentication failed" in health_of(host)["problems"][0]
        host.close()


def test_leader_only_command(start: Start, registry: Registry) -> None:
    assert "ran under" in run(start, "-m", "django", "report")
    # A run keeps the other machines out for a while, also when its process has ended.
    assert "ran under" not in run(start, "-m", "django", "report")
    assert registry.events == []


def test_health_tells_of_configurations_and_leaderships(registry: Registry) -> None:
    host = ServiceHost(
        HostOptions.parse({"ENDPOINTS": registry.endpoint, "PREFIX": registry.prefix})
    )
    # A name of its own: health tells of every configuration that this process follows.
    source = host.client.config_source("told-by-health")
    revision = source.save({"a": 1})
    with source.watch(lambda snapshot: None), host.client.campaign("chief", "me"):

        def followed() -> bool:
            (found,) = [c for c in health_of(host)["configurations"] if c["name"] == source.name]
            return found["live"] and found["stale"] is None and found["revision"] >= revision

        eventually(followed, PATIENCE)
        assert "chief" in health_of(host)["leads"]
    assert "chief" not in health_of(host)["leads"]
    host.close()


def health_of(host: ServiceHost) -> Any:
    """As a dashboard sees it."""
    return json.loads(json.dumps(check(host).details))


def test_admin_page_and_test_helpers_under_djangos_runner(start: Start, registry: Registry) -> None:
    # Not even one that is told to register: the live server of the tests is not the service.
    told = {"TEST_ADMIN": "1", "TEST_REGISTER": "true"}
    output = run(start, "-m", "django", "test", "djsite", **told)
    assert "OK" in output
    assert registry.events == []


def test_flask_status_page_is_guarded(start: Start, registry: Registry) -> None:
    server = serving(start, registry, "-m gunicorn -b 127.0.0.1:PORT flask_site:create_app()")
    registry.client.config_source("app").save({"password": "hunter2", "colour": "<red>"})
    page = server.get("/status/?who=admin")
    assert "&lt;red&gt;" in page
    assert f"127.0.0.1:{server.port}" in page
    assert "hunter2" not in page
    with pytest.raises(urllib.error.HTTPError) as raised:
        server.get("/status/")
    assert raised.value.code == 403
    raised.value.close()
