"""DjangoDynaconf, each in a process of its own: Django's settings are one per process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etcd_core import Client
from etcd_core.testing import EtcdServer

pytestmark = pytest.mark.timeout(120)
RunDjango = Callable[..., None]

PRELUDE = """
import os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
sys.path.insert(0, {folder!r})
import django
django.setup()
from django.conf import settings
import dynaconf_etcd
from etcd_core import Client, Config
from etcd_core.testing import eventually
client = Client(Config([{endpoint!r}], prefix={prefix!r}))
source = client.config_source("app")
"""

SETTINGS = """
{own}
import dynaconf
{imported}
settings = dynaconf.DjangoDynaconf(
    __name__,
    ENVIRONMENTS_FOR_DYNACONF=False,
    LOADERS_FOR_DYNACONF=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
    ETCD_FOR_DYNACONF={table},
)
"""


# Forks for each script: to import all this takes most of such a process. Nothing of Django's is in
# it, whose modules hold on to the settings object that they find.
IMPORTED = """
import json, os, sys
import dynaconf, google.protobuf, grpc, yaml
import etcd_core.client
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        os.dup2(1, 2)
        os.chdir(job["folder"])
        exec(compile(job["script"], "script", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    """Start the process that scripts are forked from."""
    with subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", IMPORTED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.fixture
def run_django(
    etcd_server: EtcdServer,
    etcd_client: Client,
    tmp_path: Path,
    forks: subprocess.Popen[str],
) -> RunDjango:
    """Run a script in a fresh process with a Django project on the test's prefix."""

    def run(
        script: str,
        own: str = "SECRET_KEY = 's'",
        extra: dict[str, object] | None = None,
        imported: str = "",
    ) -> None:
        names = {"endpoint": etcd_server.endpoint, "prefix": etcd_client.prefix}
        table = {
            "endpoints": [etcd_server.endpoint],
            "prefix": etcd_client.prefix,
            "name": "app",
            **(extra or {}),
        }
        package = tmp_path / "project"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "settings.py").write_text(
            SETTINGS.format(own=textwrap.dedent(own), table=repr(table), imported=imported)
        )
        prelude = PRELUDE.format(folder=str(tmp_path), **names)
        end = "\ndynaconf_etcd.close(settings)\nclient.close()\nprint('done')\n"
        output = tmp_path / "output"
        whole = prelude + textwrap.dedent(script) + end
        job = {"script": whole, "output": str(output), "folder": str(tmp_path)}
        assert forks.stdin is not None
        assert forks.stdout is not None
        print(json.dumps(job), file=forks.stdin, flush=True)
        status = forks.stdout.readline().strip()
        told = output.read_text()
        assert status == "0", told
        assert told.strip().endswith("done"), told

    return run


def test_structures_of_django_from_etcd_alone(
    etcd_client: Client, run_django: RunDjango, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save(
        {
            "SECRET_KEY": "from-etcd",
            "DATABASES": {
                "default": {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": str(tmp_path / "db.sqlite3"),
                    "OPTIONS": {"timeout": 7},
                }
            },
            "CACHES": {
                "default": {
                    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                    "LOCATION": "Mixed-Case",
                }
            },
            "LOGGING": {
                "version": 1,
                "disable_existing_loggers": False,
                "handlers": {"console": {"class": "logging.StreamHandler"}},
                "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR"}},
            },
            "INSTALLED_APPS": ["django.contrib.contenttypes"],
            "USE_TZ": True,
        }
    )
    run_django(
        """
        from django.core.cache import cache
        from django.db import connection
        with connection.cursor() as cursor:
            cursor.execute("create table t (x int)")
            cursor.execute("insert into t values (42)")
            cursor.execute("select x from t")
            assert cursor.fetchone() == (42,)
        assert settings.DATABASES["default"]["OPTIONS"] == {"timeout": 7}
        assert os.path.exists(settings.DATABASES["default"]["NAME"])
        cache.set("a", 1)
        assert cache.get("a") == 1
        assert settings.CACHES["default"]["LOCATION"] == "Mixed-Case"
        import logging
        assert logging.getLogger("django.request").level == logging.ERROR
        assert settings.SECRET_KEY == "from-etcd"
        connection.close()
        """,
        own="",
    )


def test_settings_are_live_and_overrides_of_tests_work(
    etcd_client: Client, run_django: RunDjango
) -> None:
    etcd_client.config_source("app").save({"greeting": "one", "email_host": "h1"})
    run_django(
        """
        from django.test.utils import override_settings
        assert (settings.GREETING, settings.EMAIL_HOST) == ("one", "h1")
        assert settings.APPEND_SLASH is True
        assert settings.DEFAULT_CHARSET == "utf-8"
        source.update({"greeting": "two"})
        eventually(lambda: settings.GREETING == "two")
        with override_settings(GREETING="mine"):
            assert settings.GREETING == "mine"
            source.update({"greeting": "three", "email_port": 99})
            eventually(lambda: dynaconf_etcd.status(settings).revision >= source.load().revision)
            assert settings.GREETING == "mine"
        assert settings.GREETING == "three"
        assert settings.EMAIL_PORT == 99
        source.update({}, delete=["email_port"])
        eventually(lambda: settings.EMAIL_PORT == 25)
        source.update({"static_url": "assets/"})
        eventually(lambda: settings.STATIC_URL.endswith("assets/"))
        source.update({"static_url": "other/"})
        eventually(lambda: settings.STATIC_URL.endswith("other/"))
        """,
        own="SECRET_KEY = 's'\nSTATIC_URL = 'static/'",
    )


def test_changes_are_pushed_on_request(etcd_client: Client, run_django: RunDjango) -> None:
    etcd_client.config_source("app").save({"email_subject_prefix": "one"})
    run_django(
        """
        from django.core import mail
        from django.core.mail import mail_admins
        from django.core.signals import setting_changed
        import django.core.mail as module
        told = []
        setting_changed.connect(
            lambda **payload: told.append((payload["setting"], payload["value"])), weak=False
        )
        source.update({"email_subject_prefix": "two"})
        eventually(lambda: ("EMAIL_SUBJECT_PREFIX", "two") in told)
        from dynaconf.contrib.django_dynaconf_v2 import django_settings
        assert django_settings.EMAIL_SUBJECT_PREFIX == "two"
        """,
        extra={"push_to_django": True},
    )


def test_what_vanishes_gives_way_to_the_default_of_django(
    etcd_client: Client, run_django: RunDjango
) -> None:
    etcd_client.config_source("app").save(
        {"email_host": "h1", "secret_key": "s1", "gone": 1, "caches": {"a": 1}, "mine": 1}
    )
    run_django(
        """
        import django.core.mail as module
        from dynaconf_etcd import internals
        from dynaconf_etcd.frameworks import django_defaults
        from dynaconf.contrib.django_dynaconf_v2 import django_settings
        assert settings.EMAIL_HOST == "h1"
        assert django_defaults(internals.unwrap(settings)) == {}
        names = ["email_host", "secret_key", "gone", "caches"]
        source.update({"mine": 2}, delete=names)
        eventually(lambda: settings.MINE == 2)
        eventually(lambda: django_settings.EMAIL_HOST == "localhost")
        eventually(lambda: not hasattr(django_settings, "GONE"))
        assert "default" in django_settings.CACHES
        from django.conf import global_settings
        assert django_settings.CACHES is not global_settings.CACHES
        assert settings.EMAIL_HOST == "localhost"
        assert django_defaults(internals.unwrap(settings)) == {}
        assert settings.get("SECRET_KEY") is None and settings.get("GONE") is None
        source.update({"email_host": "h2"})
        eventually(lambda: django_settings.EMAIL_HOST == "h2")
        """,
        own="",
        extra={"push_to_django": True},
    )


def test_other_settings_have_no_defaults_of_django(run_django: RunDjango) -> None:
    run_django(
        """
        import dynaconf
        from dynaconf_etcd import internals
        from dynaconf_etcd.frameworks import django_defaults
        assert django_defaults(internals.unwrap(dynaconf.Dynaconf())) == {}
        """,
        imported="import dynaconf_etcd",
    )


def test_hooks_beside_the_settings_run_for_each_update(
    etcd_client: Client, run_django: RunDjango, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"base": 1})
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "dynaconf_hooks.py").write_text(
        textwrap.dedent(
            """
            def post(settings):
                return {"COMPUTED": settings.BASE * 10}
            """
        )
    )
    run_django(
        """
        from dynaconf.hooking import HookableSettings
        from dynaconf_etcd import internals
        assert settings.COMPUTED == 10
        for n in (2, 3):
            source.update({"base": n})
            eventually(lambda: settings.COMPUTED == 10 * n)
            assert settings.BASE == n
        assert isinstance(internals.unwrap(settings), HookableSettings)
        """,
        own="SECRET_KEY = 's'",
    )


@pytest.mark.parametrize("imported", ["import dynaconf_etcd", ""])
def test_beside_the_setting_of_django_etcd(
    etcd_client: Client, run_django: RunDjango, imported: str
) -> None:
    etcd_client.config_source("app").save({"greeting": "one"})
    own = """
    SECRET_KEY = "s"
    ETCD_ENDPOINTS = ["127.0.0.1:1"]
    ETCD = {"ENDPOINTS": ETCD_ENDPOINTS, "SERVICE_NAME": "billing", "REGISTER": False}
    """
    script = """
    assert settings.GREETING == "one"
    assert settings.ETCD["SERVICE_NAME"] == "billing"
    assert settings.ETCD_ENDPOINTS == ["127.0.0.1:1"]
    assert dynaconf_etcd.status(settings).name == "app"
    source.update({"greeting": "two"})
    eventually(lambda: settings.GREETING == "two")
    assert settings.ETCD["SERVICE_NAME"] == "billing"
    from django.core.management import call_command
    import contextlib, io
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        call_command("diffsettings", "--all")
    assert "GREETING = 'two'" in printed.getvalue()
    call_command("check")
    from dynaconf_etcd.__main__ import main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["diff", "--settings", "project.settings:settings"]) == 1
    assert "- greeting = 'two'" in printed.getvalue(), printed.getvalue()
    """
    run_django(script, own=own, imported=imported)


def test_the_setting_of_django_etcd_is_not_the_loaders(run_django: RunDjango) -> None:
    own = "SECRET_KEY = 's'\nETCD = {'ENDPOINTS': ['127.0.0.1:1']}"
    with pytest.raises(AssertionError, match="a setting ETCD, which is not read here"):
        run_django("", own=own, extra={"endpoints": None})
