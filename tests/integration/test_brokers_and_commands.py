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

from etcd_core import Client, InvalidArgument, current_term, exclusive, leader_only
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


class TestHuey:
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


class TestDjango:
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
