"""The cluster page as a user sees it, in a headless Chromium, of Django's admin and of Flask."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from browser import Browser, find_chromium
from etcd_core import Client, Config, Descriptor
from etcd_core.testing import EtcdServer
from serving import Registry, ServerProcess, free_port

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

PAGE = "/admin/django_etcd/cluster/"
SCRIPT = "<script>document.title = 'overtaken'; alert('overtaken')</script>"
ROWS = "[...document.querySelectorAll('tr[data-key]')].map(row => row.dataset.key)"
TROUBLE = "document.querySelector('[data-role=trouble]')"


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    """An etcd that the tests here may stop."""
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="module")
def registry(etcd: EtcdServer) -> Iterator[Registry]:
    shown = Registry(etcd, f"/page/{uuid.uuid4().hex}", "shop")
    yield shown
    shown.close()


@pytest.fixture
def client(registry: Registry) -> Iterator[Client]:
    with Client(Config([registry.endpoint], prefix=registry.prefix)) as opened:
        yield opened


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser"), str(CHROMIUM)) as opened:
        # A refresh is due every second then.
        opened.hurry(5)
        yield opened


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.open("about:blank")
    chromium.forget_cookies()
    chromium.show()
    chromium.complaints.clear()
    chromium.dialogs.clear()
    return chromium


@pytest.fixture(scope="module")
def site(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The Django site on gunicorn, with its database."""
    env = {
        "DJANGO_SETTINGS_MODULE": "page_site",
        "TEST_ADMIN": "1",
        "TEST_DATABASE": str(tmp_path_factory.mktemp("site") / "site.sqlite3"),
    }
    with closing(ServerProcess(["page_site.py"], registry, **env)) as made:
        assert made.process.wait(60) == 0, made.output
        assert "tables of django_etcd: []" in made.output
    with serving("djsite.wsgi:application", registry, **env) as server:
        yield server


@contextmanager
def serving(application: str, registry: Registry, **env: str) -> Iterator[ServerProcess]:
    port = str(free_port())
    words = ["-m", "gunicorn", "-b", f"127.0.0.1:{port}", application]
    with closing(ServerProcess(words, registry, TEST_PORT=port, **env)) as server:
        server.wait_serving()
        yield server


def log_in(browser: Browser, server: ServerProcess, name: str) -> None:
    browser.open(f"http://127.0.0.1:{server.port}/admin/login/?next={PAGE}")
    browser.fill("[name=username]", name)
    browser.fill("[name=password]", name)
    with browser.loading():
        browser.click("[type=submit]")


def fill(client: Client) -> None:
    client.config_source("app").save(
        {"db": {"password": "hunter2", "url": "pg://me:hunter2@h/db", "host": "db<1>"}}
    )
    for number in range(2):
        metadata = {"zone": "a", "api-key": "hunter2", "note": SCRIPT}
        if number == 1:
            metadata["status"] = "draining"
        client.register(
            Descriptor(name="pay", id=f"pay-{number}", address=f"10.0.0.{number}:80",
                       metadata=metadata)
        )  # fmt: skip
    client.raw.put(f"{client.prefix}/services/pay/broken", "{hunter2")


def refused(browser: Browser) -> list[str]:
    """What the page's policy or the network refused, and errors of scripts."""
    # The site serves no static files, and no icon.
    return [each for each in browser.complaints if "/static/" not in each and ".ico" not in each]


def test_shows_the_cluster_and_follows_it(
    browser: Browser, site: ServerProcess, client: Client
) -> None:
    fill(client)
    held, term = client.lock("nightly"), client.campaign("chief", "number one")
    log_in(browser, site, "root")
    text = browser.text()
    for shown in ("pay-0", "10.0.0.1:80", "nightly", "number one", "1 draining", "1 malformed"):
        assert shown in text
    state = "document.querySelector('tr[data-key=\"pay-1\"] .etcd-badge').textContent"
    assert browser.run(state) == "draining"
    assert "hunter2" not in browser.source()
    assert SCRIPT in text

    # Unfolded, scrolled, filtered and selected by the user: a refresh leaves all of that alone.
    browser.show(height=300)
    browser.run("document.querySelector('[data-key=\"config app\"]').open = true")
    browser.run("document.querySelector('details[data-key=\"service pay\"]').open = false")
    browser.run("scrollTo(0, 150)")
    browser.run(
        "getSelection().selectAllChildren(document.querySelector('tr[data-key=\"nightly\"] th'))"
    )
    old = browser.run(ROWS)
    with client.register(Descriptor(name="stock", id="stock-1", address="10.0.1.1:80")):
        browser.wait_for(f"{ROWS}.includes('stock-1')")
    browser.wait_for(f"!{ROWS}.includes('stock-1')")
    assert browser.run(ROWS) == old
    assert browser.run("document.querySelector('[data-key=\"config app\"]').open") is True
    assert browser.run("document.querySelector('[data-key=\"service pay\"]').open") is False
    assert browser.run("String(getSelection())") == "nightly"
    assert browser.run("scrollY") == 150
    assert browser.run("document.title").startswith("etcd cluster")
    assert browser.dialogs == []
    assert refused(browser) == []

    browser.fill("[data-role=filter]", "pay-1")
    assert browser.run("document.querySelectorAll('tr[data-key]:not([hidden])').length") == 1
    held.unlock()
    term.resign()


def test_an_outage_and_the_end_of_the_session(
    browser: Browser, site: ServerProcess, etcd: EtcdServer, client: Client
) -> None:
    fill(client)
    log_in(browser, site, "root")
    assert "pay-0" in browser.text()
    etcd.kill()
    trouble = browser.wait_for(f"!{TROUBLE}.hidden && {TROUBLE}.textContent")
    assert "Not current since" in trouble
    assert "etcd cannot be reached" in trouble
    assert "pay-0" in browser.text()
    with browser.loading():
        browser.run("location.reload()")
    assert "etcd cannot be read" in browser.text()
    etcd.start()
    browser.wait_for(f"{TROUBLE}.hidden && {ROWS}.includes('pay-0')")

    browser.forget_cookies()
    browser.wait_for(f"{TROUBLE}.textContent.includes('Reload it to log in')")
    assert "pay-0" in browser.text()


def test_rests_while_nobody_looks(browser: Browser, site: ServerProcess) -> None:
    log_in(browser, site, "root")
    asked = "performance.getEntriesByType('resource').filter(e => e.name.endsWith('/fragment'))"
    browser.run("Object.defineProperty(document, 'hidden', {get: () => window.away, set() {}})")
    browser.run("window.away = true")
    browser.run("document.dispatchEvent(new Event('visibilitychange'))")
    count = browser.run(f"{asked}.length")
    with pytest.raises(AssertionError, match="not within"):
        browser.wait_for(f"{asked}.length > {count}", 2.5)
    browser.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait_for(f"{asked}.length > {count}")
    browser.click("[data-role=pause]")
    assert "paused" in browser.wait_for("document.querySelector('.etcd-clock').textContent")


def test_is_for_permitted_users_only(browser: Browser, site: ServerProcess, client: Client) -> None:
    fill(client)
    log_in(browser, site, "clerk")
    assert "403" in browser.text()
    assert "pay-0" not in browser.source()
    browser.open(f"http://127.0.0.1:{site.port}/admin/")
    assert "cluster" not in browser.source()


def test_flask_page_behind_its_guard(browser: Browser, registry: Registry, client: Client) -> None:
    fill(client)
    with serving("page_app:app", registry) as server:
        browser.open(f"http://127.0.0.1:{server.port}/status/")
        assert "Forbidden" in browser.text()
        browser.complaints.clear()
        browser.open(f"http://127.0.0.1:{server.port}/enter")
        browser.open(f"http://127.0.0.1:{server.port}/status/")
        assert "pay-0" in browser.text()
        assert "hunter2" not in browser.source()
        with client.register(Descriptor(name="stock", id="stock-1", address="10.0.1.1:80")):
            browser.wait_for(f"{ROWS}.includes('stock-1')")
        assert browser.run("document.title") == "etcd cluster"
    assert browser.dialogs == []
    assert refused(browser) == []
