"""Guards on the tasks of Dramatiq and Huey, and on the commands of Flask and Django.

Each part is skipped where its package is not installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading

import pytest

from etcd_core import Client, InvalidArgument, LockTimeout, current_term, exclusive, leader_only
from etcd_core.testing import EtcdServer, fake_leader, no_leader


class TestDramatiq:
    def test_the_guard_goes_below_the_actor(self, etcd_client: Client) -> None:
        dramatiq = pytest.importorskip("dramatiq")
        stub = pytest.importorskip("dramatiq.brokers.stub")
        broker = stub.StubBroker()
        ran: list[int] = []

        @dramatiq.actor(broker=broker)
        @exclusive("import", client=etcd_client, otherwise="wait", wait=20)
        def load(feed: str) -> None:
            """Load a feed."""
            ran.append(current_term().token)

        assert load.actor_name == "load"
        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=4)
        worker.start()
        try:
            for number in range(6):
                load.send(str(number))
            broker.join(load.queue_name, fail_fast=True, timeout=20_000)
            worker.join()
        finally:
            worker.stop()
        assert len(set(ran)) == 6
        with pytest.raises(InvalidArgument, match="below its decorator"):
            exclusive("import")(load)
        with pytest.raises(InvalidArgument, match=r"take exclusive\(\)"):
            leader_only("import")(load)

    def test_a_message_that_would_be_dropped_fails(self) -> None:
        dramatiq = pytest.importorskip("dramatiq")
        stub = pytest.importorskip("dramatiq.brokers.stub")
        broker = stub.StubBroker()

        @dramatiq.actor(broker=broker, max_retries=0)
        @leader_only("import")
        def load(feed: str) -> None: ...

        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        try:
            with no_leader("import"):
                load.send("a")
                with pytest.raises(InvalidArgument, match=r"dramatiq gives .*take exclusive\(\)"):
                    broker.join(load.queue_name, fail_fast=True, timeout=20_000)
                worker.join()
        finally:
            worker.stop()


class TestHuey:
    def test_a_message_that_would_be_dropped_fails(self) -> None:
        huey = pytest.importorskip("huey")
        app = huey.MemoryHuey(immediate=True)

        @app.task()
        @leader_only("import")
        def load() -> None: ...

        @app.task()
        @leader_only("import", allow_drop=True, default="dropped")
        def allowed() -> str:
            return "ran"

        with no_leader("import"):
            with pytest.raises(huey.exceptions.TaskException, match=r"take exclusive\(\)"):
                load().get()
            assert allowed().get() == "dropped"

    def test_the_guard_goes_below_the_task(self, etcd_client: Client) -> None:
        huey = pytest.importorskip("huey")
        app = huey.MemoryHuey(immediate=True)

        @app.task()
        @exclusive("import", client=etcd_client, default="skipped")
        def load(feed: str) -> str:
            return f"{feed} {current_term().name}"

        assert load("a").get() == "a import"
        with etcd_client.lock("import"):
            assert load("b").get() == "skipped"
        with pytest.raises(InvalidArgument, match="below its decorator"):
            exclusive("import")(load)


class TestFlask:
    def test_a_command(self, etcd_client: Client) -> None:
        flask = pytest.importorskip("flask")
        app = flask.Flask("shop")

        @app.cli.command("cleanup")
        @exclusive("cleanup", client=etcd_client, otherwise="raise")
        def cleanup() -> None:
            """Clean up."""
            print("cleaned under", current_term().name)

        runner = app.test_cli_runner()
        assert runner.invoke(args=["cleanup"]).output == "cleaned under cleanup\n"
        with etcd_client.lock("cleanup"):
            refused = runner.invoke(args=["cleanup"])
        assert "another run has the lock" in str(refused.exception)

    def test_a_view_in_several_threads(self, etcd_client: Client) -> None:
        flask = pytest.importorskip("flask")
        app = flask.Flask("shop")
        seen: list[str] = []

        @app.post("/rebuild")
        @exclusive("rebuild", client=etcd_client, default=("busy", 409))
        def rebuild() -> str:
            return f"by {current_term().name}"

        def post() -> None:
            seen.append(app.test_client().post("/rebuild").text)

        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(seen) <= {"by rebuild", "busy"}
        assert "by rebuild" in seen

    def test_two_apps_in_one_process_do_not_mix(
        self, etcd_client: Client, etcd_server: EtcdServer
    ) -> None:
        """One extension, two apps under different prefixes: each has its own leader and term."""
        flask = pytest.importorskip("flask")
        flask_etcd = pytest.importorskip("flask_etcd")
        extension = flask_etcd.Etcd()

        @extension.leader_only("job")
        def task() -> int:
            return current_term().token

        tokens, clients = {}, []
        for name in ("one", "two"):
            app = flask.Flask(name)
            app.config["ETCD_ENDPOINTS"] = [etcd_server.endpoint]
            app.config["ETCD_PREFIX"] = f"{etcd_client.prefix}/{name}"
            extension.init_app(app)
            with app.app_context():
                tokens[name] = task()
                clients.append(extension.client)
        try:
            for name in ("one", "two"):
                with Client(
                    endpoints=[etcd_server.endpoint], prefix=f"{etcd_client.prefix}/{name}"
                ) as witness:
                    assert witness.leader("job") is not None
            assert None not in tokens.values()
            assert tokens["one"] != tokens["two"]
        finally:
            for client in clients:
                client.close()

    def test_its_own_guards_use_its_client(
        self, etcd_client: Client, etcd_server: EtcdServer
    ) -> None:
        flask = pytest.importorskip("flask")
        flask_etcd = pytest.importorskip("flask_etcd")
        extension = flask_etcd.Etcd()

        @extension.exclusive("job", otherwise="raise")
        def task() -> int:
            return current_term().token

        @extension.leader_only("job", allow_drop=True)
        def led() -> int:
            return current_term().token

        app = flask.Flask("one")
        app.config["ETCD_ENDPOINTS"] = [etcd_server.endpoint]
        app.config["ETCD_PREFIX"] = etcd_client.prefix
        extension.init_app(app)
        try:
            assert task() > 0
            with etcd_client.lock("job"), pytest.raises(LockTimeout):
                task()
            assert led() > 0
            assert etcd_client.leader("job") is not None
        finally:
            extension.client.close()


class TestDjango:
    GUARDS = """
        import sys
        import django
        from django.conf import settings
        settings.configure(
            INSTALLED_APPS=["django_etcd"],
            ETCD={"ENDPOINTS": [sys.argv[1]], "PREFIX": sys.argv[2]},
        )
        django.setup()
        import django_etcd
        from etcd_core import current_term, set_default_client

        set_default_client(lambda: None)  # what another library of the process might do

        @django_etcd.leader_only("led")
        def led():
            return current_term().token

        @django_etcd.exclusive("job", otherwise="raise")
        def task():
            return current_term().token

        print(led() > 0, task() > 0, django_etcd.client().leader("led") is not None)
        django_etcd.ready(False)
        django_etcd.client().close()
    """

    def test_its_own_guards_use_its_client(
        self, etcd_client: Client, etcd_server: EtcdServer
    ) -> None:
        pytest.importorskip("django")
        command = [sys.executable, "-c", textwrap.dedent(self.GUARDS)]
        done = subprocess.run(
            [*command, etcd_server.endpoint, etcd_client.prefix],
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.stdout.split() == ["True"] * 3, done.stderr

    SCRIPT = """
        import sys
        import django
        from django.conf import settings
        settings.configure()
        django.setup()
        from django.core.management import call_command
        from django.core.management.base import BaseCommand
        from etcd_core import Client, current_term, exclusive, set_default_client

        set_default_client(Client(endpoints=[sys.argv[1]], prefix=sys.argv[2]))

        class Command(BaseCommand):
            @exclusive("report", otherwise="raise")
            def handle(self, *args, **options):
                self.stdout.write(current_term().name)

        call_command(Command())
    """

    def test_a_management_command(self, etcd_client: Client, etcd_server: EtcdServer) -> None:
        pytest.importorskip("django")
        command = [sys.executable, "-c", textwrap.dedent(self.SCRIPT)]
        arguments = [etcd_server.endpoint, etcd_client.prefix]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *arguments], capture_output=True, text=True, timeout=50
            )

        done = run()
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "report"
        with etcd_client.lock("report"):
            refused = run()
        assert refused.returncode != 0
        assert "LockTimeout" in refused.stderr


def test_a_skip_is_safe_in_json() -> None:
    with no_leader("job"):
        assert json.dumps(exclusive("job")(lambda: 1)()) == "null"
    with fake_leader("job"):
        assert json.dumps(exclusive("job")(lambda: 1)()) == "1"
