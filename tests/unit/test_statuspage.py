"""The cluster page without etcd: masking, ages, escaping, and the bounds of what is shown."""

from __future__ import annotations

import re
import time

import pytest

from etcd_core import Descriptor
from etcd_core.inventory import (
    Instance,
    LeaseTime,
    configs_in,
    queues_in,
    services_in,
)
from etcd_core.masking import MASK, is_secret_name, masked
from etcd_core.mirror import Entry
from etcd_core.statuspage import ASSETS, Section, Status, asset, body, document, fragment
from etcd_core.statuspage.ages import Age, RevisionTimes
from etcd_core.statuspage.markup import Html, el, join
from etcd_core.statuspage.sections import MOST_INSTANCES, MOST_SETTINGS


@pytest.mark.parametrize(
    "name",
    ["password", "DB_PASSWORD", "db.passwd", "dbpass", "api-key", "apiKey", "access_key", "secret",
     "token", "auth.token", "ssh-key", "pwd", "dsn", "session_cookie", "PRIVATE", "jwt", "userJwt",
     "cookie", "bearer", "salt", "signing", "SIGNING_SECRET", "auth", "auth.header", "basicAuth",
     "HTTP_AUTH", "oauth", "Authorization", "userPwd", "dbPass"],
)  # fmt: skip
def test_masks_by_name(name: str) -> None:
    assert is_secret_name(name)
    assert masked(name, "x") == MASK
    assert masked("outer", [{"inner": {name: 1}}]) == [{"inner": {name: MASK}}]


@pytest.mark.parametrize(
    "text",
    [
        "postgres://me:hunter2@db/app",
        "host=db password=hunter2",
        '{"token": "hunter2"}',
        "https://h/?api_key=hunter2",
        "Bearer abcdefgh12345678",
        "Bearer xyz",
        "Basic dXNlcjpwYXNz",
        "https://key@sentry.io/1",
        "https://user:@h",
        "redis://:hunter2@h/0",
        "postgres://me:hun/ter2@db",
        "Server=h;Uid=me;Pwd=hunter2",
        "h:1,token=hunter2",
        '{"basicAuth": "hunter2"}',
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMII",
    ],
)
def test_masks_by_what_a_text_holds(text: str) -> None:
    assert masked("value", text) == MASK
    assert masked("value", [text, "plain"]) == [MASK, "plain"]
    assert masked("value", text.encode()) == MASK


@pytest.mark.parametrize(
    "value",
    ["http://h:80/path", "north", 1, None, ["a"], {"zone": "a"}, "me@example.org", "https://h/a@1",
     "a basic plan", {"author": "me", "authority": "h", "authentic": 1, "assigning": 2}],
)  # fmt: skip
def test_leaves_the_rest(value: object) -> None:
    assert masked("compass.bearing", value) == value


@pytest.mark.parametrize("value", [None, True, False])
def test_leaves_what_cannot_be_a_secret(value: object) -> None:
    assert masked("password", value) is value


@pytest.mark.parametrize("text", ["token", "sign", "://:", "://a", "token ", "basic ", "eyj", "aB"])
def test_masking_a_long_text_takes_no_time(text: str) -> None:
    begun = time.process_time()
    masked("value", text * (1_500_000 // len(text)))
    assert time.process_time() - begun < 10


def test_age_lies_between_what_was_seen() -> None:
    times = RevisionTimes()
    assert times.age(5, 100.0) is None
    times.note(10, asked=100.0, answered=101.0)
    times.note(20, asked=200.0, answered=201.0)
    assert times.age(5, 300.0) == Age(199.0, None)
    assert times.age(10, 300.0) == Age(199.0, None)
    assert times.age(11, 300.0) == Age(99.0, 200.0)
    assert times.age(21, 300.0) is None
    # The same revision, seen again: what comes after it is younger than we thought.
    times.note(10, asked=150.0, answered=151.0)
    assert times.age(11, 300.0) == Age(99.0, 150.0)
    assert times.age(10, 300.0) == Age(199.0, None)


@pytest.mark.parametrize(
    ("age", "exact"),
    [(Age(5, None), False), (Age(5, 12), True), (Age(5, 20), False), (Age(600, 650), True)],
)
def test_an_age_is_exact_where_its_bounds_are_close(age: Age, exact: bool) -> None:
    assert age.exact is exact


def test_remembers_a_bounded_number_of_moments() -> None:
    times = RevisionTimes()
    for number in range(5000):
        times.note(number, asked=number, answered=number + 0.5)
    assert len(times._revisions) <= 512
    first, last = times.age(0, 5000.0), times.age(4999, 5000.0)
    assert first is not None
    assert last is not None
    assert (first.at_least, last.at_most) == (4999.5, 2.0)


@pytest.mark.parametrize(
    ("lease", "renewed", "late"),
    [
        (LeaseTime(15, 14), 1, False),
        (LeaseTime(15, 9), 6, False),
        (LeaseTime(15, 5), 10, True),
        (LeaseTime(2, 1), 1, False),
        (LeaseTime(15, 20), 0, False),
        (LeaseTime(15, -1), 16, True),
    ],
)
def test_lease_time(lease: LeaseTime, renewed: int, late: bool) -> None:
    assert (lease.renewed, lease.late) == (renewed, late)


def test_text_is_escaped_and_markup_is_not() -> None:
    assert el("p", "<b>", el("i", "x"), None, class_='a"b', hidden=True, title=None) == (
        '<p class="a&quot;b" hidden>&lt;b&gt;<i>x</i></p>'
    )
    assert el("input", data_role="x") == '<input data-role="x">'
    assert isinstance(join("a", Html("<br>")), Html)


def entry(key: str, value: str = "", revision: int = 1, lease: int = 1) -> Entry:
    return Entry(f"/p/x/{key}".encode(), value.encode(), revision, revision, lease)


def instance(number: int, **changes: object) -> Instance:
    info = Descriptor(name="pay", id=f"pay-{number:04}", address=f"10.0.0.{number}:80")
    fields = {
        "service": "pay", "id": info.id, "info": info, "trouble": "", "key": "", "lease_id": 1,
        "created": 1, "revision": 1, **changes,
    }  # fmt: skip
    return Instance(**fields)  # type: ignore[arg-type]


def test_sorts_what_was_read() -> None:
    services = services_in([("pay/b", entry("pay/b", "{")), ("a/b/c", entry("a/b/c"))])
    assert [(each.id, each.info, bool(each.trouble)) for each in services["pay"]] == [
        ("b", None, True)
    ]
    assert list(services) == ["pay"]
    (queue,) = queues_in(
        [
            ("jobs/a/2f", entry("jobs/a/2f", "late", revision=9)),
            ("jobs/a/1f", entry("jobs/a/1f", "early", revision=3)),
            ("jobs/a/xyz", entry("jobs/a/xyz")),
        ]
    )
    assert (queue.name, queue.first.identity, queue.first.token) == ("jobs/a", "early", 3)
    assert [each.identity for each in queue.waiting] == ["late"]


def test_shows_troubled_instances_first_and_not_too_many() -> None:
    many = [instance(number) for number in range(MOST_INSTANCES + 50)]
    many.append(instance(999, info=None, trouble="no <JSON>"))
    shown = fragment(Status("/p", services=Section([("pay", many)])))
    rows = re.findall(r'<tr data-key="(pay-\d+)"', shown)
    assert len(rows) == MOST_INSTANCES
    assert rows[0] == "pay-0999"
    assert "51 more instances" in shown
    assert "no &lt;JSON&gt;" in shown
    assert '<details data-key="service pay">' in shown


def test_shows_not_too_many_settings_and_masks_them() -> None:
    leaves = [(f"app/a{n:04}", entry(f"app/a{n:04}", str(n))) for n in range(MOST_SETTINGS + 9)]
    leaves.append(("app/a.password", entry("app/a.password", "hunter2")))
    leaves.append(("app/broken", entry("app/broken", "{a: [")))
    configs = configs_in(leaves)
    shown = fragment(Status("/p", configs=Section(configs)))
    assert shown.count("<tr data-key") == MOST_SETTINGS
    assert "11 more settings" in shown
    assert "hunter2" not in shown
    assert "1 unreadable" in shown


def test_long_values_are_folded_and_cut() -> None:
    leaves = [("app/long", entry("app/long", "x" * 9000)), ("app/b", entry("app/b", "short"))]
    shown = fragment(Status("/p", configs=Section(configs_in(leaves))))
    assert "9,002 characters" in shown
    assert len(shown) < 8000


def test_a_section_that_may_not_be_read_says_so() -> None:
    shown = fragment(Status("/p", locks=Section(error="permission <denied>")))
    assert "permission &lt;denied&gt;" in shown
    assert "No elections." in shown


def test_the_page_has_nothing_inline() -> None:
    page = document(Status("/p", error="down <1>"))
    assert page.startswith("<!doctype html>")
    assert "down &lt;1&gt;" in page
    assert not re.search(r"<style|style=|onclick|javascript:", page)
    assert re.findall(r"<script[^>]*>([^<]*)<", page) == [""]
    assert body(Status("/p")) in document(Status("/p"))
    assert all(asset(name) for name in ASSETS)
