"""Run by Django's own test runner, in a process of its own."""

import contextlib
import re
import time
import urllib.request
from unittest.mock import patch

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.test import LiveServerTestCase, TestCase

import django_etcd
from django_etcd.test import override_etcd
from etcd_core import Descriptor, EtcdError
from etcd_core.statuspage.reading import collect

PAGE = "/admin/django_etcd/cluster/"
PARTS = ("", "fragment", "cluster.js", "cluster.css")
assert collect.__kwdefaults__ is not None
soon_given_up = patch.dict(collect.__kwdefaults__, timeout=0.3)


class AdminPage(TestCase):
    def login(self, name: str, *, permitted: bool) -> None:
        user = User.objects.create_user(name, is_staff=True)
        if permitted:
            user.user_permissions.add(Permission.objects.get(codename="view_cluster"))
        self.client.force_login(user)

    def test_shows_what_is_there(self) -> None:
        self.login("viewer", permitted=True)
        client = django_etcd.client()
        client.config_source("app").save(
            {"db": {"password": "hunter2", "host": "db<1>", "url": "pg://me:hunter2@h/db"}}
        )
        me = Descriptor(
            name="pay", id="pay-1", address="10.0.0.1:80", metadata={"zone": "<b>", "token": "t0k"}
        )
        with client.register(me), client.lock("nightly"), client.campaign("chief", "number one"):
            page = self.client.get(PAGE).content.decode()
        for shown in ("pay-1", "10.0.0.1:80", "zone=&lt;b&gt;", "nightly", "number one"):
            assert shown in page
        assert "db&lt;1&gt;" in page
        assert "hunter2" not in page
        assert "t0k" not in page
        assert "django_etcd/cluster" in self.client.get("/admin/").content.decode()

    def test_every_part_is_refused_without_the_permission(self) -> None:
        self.login("staff", permitted=False)
        assert [self.client.get(PAGE + part).status_code for part in PARTS] == [403] * len(PARTS)
        self.client.logout()
        assert [self.client.get(PAGE + part).status_code for part in PARTS] == [302] * len(PARTS)

    def test_is_read_only(self) -> None:
        self.login("viewer", permitted=True)
        for action in ("add/", "1/change/", "1/delete/", "1/history/"):
            assert self.client.get(PAGE + action).status_code == 404
        assert [self.client.post(PAGE + part).status_code for part in PARTS] == [405] * len(PARTS)
        assert [self.client.head(PAGE + part).status_code for part in PARTS] == [200] * len(PARTS)

    def test_loads_nothing_but_its_own_parts(self) -> None:
        self.login("viewer", permitted=True)
        page = self.client.get(PAGE).content.decode()
        loaded = re.findall(r'(?:src|href)="([^"/?#]+)', page)
        assert loaded == ["cluster.css", "cluster.js"]
        assert "<style" not in page
        assert self.client.get(PAGE + "cluster.js")["Content-Type"].startswith("text/javascript")
        assert "no-store" in self.client.get(PAGE + "fragment")["Cache-Control"]

    @soon_given_up
    def test_tells_that_etcd_is_down(self) -> None:
        self.login("viewer", permitted=True)
        with override_etcd(ENDPOINTS=["127.0.0.1:1"], TIMEOUT=0.3):
            page = self.client.get(PAGE).content.decode()
            assert "etcd cannot be read" in page
            assert "etcd cannot be read" in self.client.get(PAGE + "fragment").content.decode()

    @soon_given_up
    def test_an_outage_is_not_mailed_to_the_admins_at_each_probe(self) -> None:
        with (
            override_etcd(ENDPOINTS=["127.0.0.1:1"], TIMEOUT=0.3),
            self.assertNoLogs("django.request"),
        ):
            with contextlib.suppress(EtcdError):
                django_etcd.client().discover("pay")
            assert self.client.get("/etcd/health").status_code == 503
            self.login("viewer", permitted=True)
            self.client.get(PAGE + "fragment")

    def test_has_its_migration(self) -> None:
        call_command("makemigrations", "django_etcd", check=True, dry_run=True, verbosity=0)


class Override(TestCase):
    def test_changes_the_client_and_back(self) -> None:
        outside = django_etcd.client()
        with override_etcd(PREFIX="/other"):
            inside = django_etcd.client()
            assert inside.prefix == "/other"
        assert inside.closed
        assert django_etcd.client().prefix == outside.prefix


class LiveServer(LiveServerTestCase):
    def test_is_not_the_service(self) -> None:
        with urllib.request.urlopen(self.live_server_url, timeout=20) as answer:
            assert answer.status == 200
        time.sleep(0.5)
        assert django_etcd.registration() is None
