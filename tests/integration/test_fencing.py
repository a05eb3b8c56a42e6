"""Fencing tokens in a database: Django's ``update_if_newer``, and the plain DB-API recipe.

Each case runs in a process of its own, since Django has one set of settings per process. SQLite
always; PostgreSQL where its programs and psycopg are installed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from glob import glob
from importlib.util import find_spec
from pathlib import Path

import pytest

from etcd_core import Client, current_term, exclusive
from etcd_core.testing import EtcdServer

pytest.importorskip("django")

SCRIPT = """
    import json, sys, threading
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": json.loads(sys.argv[1])},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    )
    django.setup()

    from django.core.exceptions import FieldError
    from django.db import connection, models
    from django_etcd.fencing import FencedModel, FencedQuerySet
    from etcd_core import NotLeader, leader_only
    from etcd_core.testing import fake_leader

    class Month(FencedModel):
        state = models.CharField(max_length=20)

        class Meta:
            app_label = "fencing"

    class Legacy(models.Model):
        generation = models.BigIntegerField(null=True)
        state = models.CharField(max_length=20)

        class Generations(FencedQuerySet):
            fencing_field = "generation"

        objects = models.Manager.from_queryset(Generations)()

        class Meta:
            app_label = "fencing"

    class Child(Month):
        note = models.CharField(max_length=20)

        class Meta:
            app_label = "fencing"

    with connection.schema_editor() as editor:
        for model in (Month, Legacy, Child):
            editor.create_model(model)

    month = Month.objects.create(state="open")
    rows = Month.objects.filter(pk=month.pk)

    def state():
        month.refresh_from_db()
        return month.fencing_token, month.state

    assert rows.update_if_newer(token=5, state="five") == 1
    assert state() == (5, "five")
    assert rows.update_if_newer(token=4, state="late") == 0
    assert state() == (5, "five")
    assert rows.update_if_newer(token=5, state="again") == 1
    assert rows.update_if_newer(token=6, state=models.F("state")) == 1
    assert state() == (6, "again")
    assert Month.objects.filter(pk=0).update_if_newer(token=9, state="x") == 0

    # The token of the running task.
    task = leader_only("close")(lambda: rows.update_if_newer(state="task"))
    with fake_leader("close", token=7):
        assert task() == 1
    assert state() == (7, "task")
    with fake_leader("close", token=3):
        assert task() == 0
    try:
        rows.update_if_newer(state="nobody")
    except NotLeader:
        pass
    else:
        raise AssertionError("no token")

    # A nullable column of another name.
    Legacy.objects.create(state="old")
    assert Legacy.objects.all().update_if_newer(token=1, state="new") == 1
    assert Legacy.objects.update_if_newer(token=0, state="late") == 0
    assert Legacy.objects.get().generation == 1

    # Two tables cannot be written by one statement.
    Child.objects.create(state="s", note="n")
    try:
        Child.objects.all().update_if_newer(token=1, note="x")
    except FieldError as exc:
        assert "note" in str(exc), exc
    else:
        raise AssertionError("two tables")

    # Many writers at once: whatever the order, the highest token's value stays.
    def write(token):
        from django.db import close_old_connections, connections
        rows.update_if_newer(token=token, state=f"by {token}")
        connections.close_all()

    threads = [threading.Thread(target=write, args=(10 + n * 7 % 16,)) for n in range(16)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert state() == (25, "by 25"), state()
    print("fenced on", connection.vendor)
"""


def run(database: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), database],
        timeout=50,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_django_on_sqlite(tmp_path: Path) -> None:
    options = '"OPTIONS": {"timeout": 30}'
    database = f'{{"ENGINE": "django.db.backends.sqlite3", "NAME": "{tmp_path}/db", {options}}}'
    assert run(database) == "fenced on sqlite"


def test_django_on_postgresql(postgresql: int) -> None:
    database = (
        '{"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres",'
        f' "HOST": "127.0.0.1", "PORT": {postgresql}}}'
    )
    assert run(database) == "fenced on postgresql"


@pytest.fixture
def postgresql() -> Iterator[int]:
    """A PostgreSQL of this test's own; gives its port."""
    if find_spec("psycopg") is None and find_spec("psycopg2") is None:
        pytest.skip("psycopg is not installed")
    found = sorted(glob("/usr/lib/postgresql/*/bin"))
    initdb = shutil.which("initdb", path=os.pathsep.join([*found[::-1], os.environ["PATH"]]))
    if initdb is None:
        pytest.skip("PostgreSQL's programs are not installed")
    # It refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    with tempfile.TemporaryDirectory() as root:
        shutil.chown(root, user)
        data = f"{root}/data"
        setup = [initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(setup, check=True, timeout=50, user=user, cwd=root, capture_output=True)
        port = free_port()
        options = f"-h 127.0.0.1 -p {port} -k {root} -c fsync=off"
        control = [str(Path(initdb).with_name("pg_ctl")), "-D", data, "-w"]
        log = ["-l", f"{root}/log", "-o", options]
        subprocess.run([*control, *log, "start"], check=True, timeout=50, user=user, cwd=root)
        try:
            yield port
        finally:
            stop = [*control, "-m", "immediate", "stop"]
            subprocess.run(stop, check=True, timeout=50, user=user, cwd=root)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_the_db_api_recipe(etcd_client: Client, etcd_server: EtcdServer, tmp_path: Path) -> None:
    """The recipe of docs/tasks.md, with a holder that lost its lock before it wrote."""
    database = sqlite3.connect(tmp_path / "db")
    database.execute("CREATE TABLE report (id INTEGER PRIMARY KEY, body TEXT, token INTEGER)")
    database.execute("INSERT INTO report VALUES (1, '', 0)")

    def write(body: str, token: int) -> bool:
        cursor = database.execute(
            "UPDATE report SET body = ?, token = ? WHERE id = 1 AND token <= ?",
            (body, token, token),
        )
        return cursor.rowcount == 1

    @exclusive("report", client=etcd_client)
    def late() -> tuple[bool | None, bool]:
        token = current_term().token
        etcd_server.ctl("del", "--prefix", f"{etcd_client.prefix}/locks/")
        with Client(etcd_client.config) as other:
            second = exclusive("report", client=other)(
                lambda: write("second", current_term().token)
            )()
        return second, write("first", token)

    assert late() == (True, False)
    assert database.execute("SELECT body FROM report").fetchone() == ("second",)
    database.close()
