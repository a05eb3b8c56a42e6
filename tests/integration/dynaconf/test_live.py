"""What survives a swap, and what a program does to its settings at run time."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator
from dynaconf.utils.inspect import get_history

import dynaconf_etcd
from dynaconf_etcd import internals
from etcd_core import Client
from etcd_core.testing import eventually

MakeSettings = Callable[..., Dynaconf]


@pytest.fixture
def step(etcd_client: Client) -> Callable[[Dynaconf], None]:
    """Change something unrelated in etcd and wait until the settings show it."""
    source = etcd_client.config_source("app")
    count = 0

    def one_more(settings: Dynaconf) -> None:
        nonlocal count
        count += 1
        source.update({"step": count})
        eventually(lambda: settings.get("step") == count)

    return one_more


Step = Callable[[Dynaconf], None]


def test_a_setting_of_run_time_stays_over_etcd(
    etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    source = etcd_client.config_source("app")
    source.save({"foo": "etcd", "later": "etcd"})
    settings = make_settings()
    settings.FOO = "mine"
    settings["own"] = "mine"
    settings.set("other", "mine")
    step(settings)
    assert (settings.FOO, settings.OWN, settings.OTHER) == ("mine", "mine", "mine")
    source.update({"foo": "etcd again", "own": "etcd"})
    eventually(lambda: settings.OWN == "etcd")
    assert settings.FOO == "mine"
    step(settings)
    assert (settings.FOO, settings.OWN, settings.OTHER) == ("mine", "etcd", "mine")


def test_the_history_names_etcd_and_does_not_grow(
    etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    etcd_client.config_source("app").save({"server": {"port": 1}})
    settings = make_settings("[server]\nhost = 'h'\n")
    step(settings)
    sources = list(internals.history(internals.unwrap(settings)))
    for _ in range(5):
        step(settings)
    assert list(internals.history(internals.unwrap(settings))) == sources
    entries = [entry for entry in get_history(settings, "server") if entry["loader"] == "etcd"]
    assert [(entry["identifier"], entry["env"], entry["value"]) for entry in entries] == [
        ("etcd://app", "default", {"port": 1})
    ]


def test_hooks_run_once_for_each_update(
    tmp_path: Path, make_settings: MakeSettings, step: Step
) -> None:
    runs: list[str] = []
    monkey = sys.modules[__name__]
    monkey.RUNS = runs  # type: ignore[attr-defined]
    (tmp_path / "settings.py").write_text(
        textwrap.dedent(
            f"""
            import sys
            from dynaconf import post_hook
            VALUE = 1

            @post_hook
            def computed(settings):
                sys.modules[{__name__!r}].RUNS.append("file")
                return {{"COMPUTED": settings.VALUE + 1}}
            """
        )
    )

    def given(settings: Dynaconf) -> dict[str, object]:
        runs.append("given")
        return {"GIVEN": settings.VALUE + 2}

    settings = make_settings(settings_files=["settings.py"], post_hooks=[given])
    assert (settings.COMPUTED, settings.GIVEN) == (2, 3)
    for _ in range(3):
        runs.clear()
        step(settings)
        assert sorted(runs) == ["file", "given"]
    assert (settings.COMPUTED, settings.GIVEN) == (2, 3)


def test_post_hooks_leave_no_setting_behind(make_settings: MakeSettings, step: Step) -> None:
    settings = make_settings()
    before = set(settings.as_dict())
    step(settings)
    assert set(settings.as_dict()) == before | {"STEP"}


def test_files_are_found_from_the_watching_thread(
    tmp_path: Path, make_settings: MakeSettings, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "settings.toml").write_text("foo = 'file'")
    monkeypatch.chdir(tmp_path)
    settings = make_settings(root_path=None, settings_files=["conf/settings.toml"])
    assert settings.FOO == "file"
    monkeypatch.chdir("/")
    step(settings)
    assert settings.FOO == "file"


def test_edits_of_files_come_with_the_next_update(
    tmp_path: Path, make_settings: MakeSettings, step: Step
) -> None:
    settings = make_settings("foo = 'one'")
    assert settings.FOO == "one"
    (tmp_path / "settings.toml").write_text("foo = 'two'")
    step(settings)
    assert settings.FOO == "two"


def test_load_file_is_repeated(tmp_path: Path, make_settings: MakeSettings, step: Step) -> None:
    (tmp_path / "extra.toml").write_text("extra = 1")
    settings = make_settings("foo = 1")
    settings.load_file(str(tmp_path / "extra.toml"))
    assert settings.EXTRA == 1
    for _ in range(3):
        step(settings)
        assert settings.EXTRA == 1
    names = [
        source.loader
        for source in internals.history(internals.unwrap(settings))
        if source.loader.startswith("load_file@")
    ]
    assert len(names) == 1


def test_includes_stay_above_etcd(
    tmp_path: Path, etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    (tmp_path / "more.toml").write_text("foo = 'include'")
    etcd_client.config_source("app").save({"foo": "etcd"})
    settings = make_settings("x = 1", includes=["more.toml"])
    assert settings.FOO == "include"
    step(settings)
    assert settings.FOO == "include"


def test_using_env_spanning_an_update(
    etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    etcd_client.config_source("app.production").save({"where": "production"})
    etcd_client.config_source("app.development").save({"where": "development"})
    settings = make_settings(environments=True)
    assert settings.WHERE == "development"
    with settings.using_env("production"):
        assert settings.WHERE == "production"
        step(settings)
        assert settings.WHERE == "production"
    assert settings.WHERE == "development"
    step(settings)
    assert settings.WHERE == "development"
    settings.setenv("production")
    step(settings)
    assert settings.WHERE == "production"
    settings.setenv()
    assert settings.WHERE == "development"


def test_a_held_environment_sees_what_its_parent_accepted(
    etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    settings = make_settings(environments=True, validators=[Validator("port", lt=10)])
    held = settings.from_env("production")
    assert held.PORT == 1
    source.update({"port": 2})
    eventually(lambda: settings.PORT == 2)
    assert held.PORT == 1
    assert settings.from_env("production").PORT == 2
    held.reload()
    assert held.PORT == 2
    source.update({"port": 99})
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    held.reload()
    assert held.PORT == 2


def test_reading_fresh_costs_no_request(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save({"foo": 1, "bar": 2})
    settings = make_settings(fresh_vars=["foo"])
    assert settings.FOO == 1
    assert settings.get_fresh("bar") == 2
    with settings.fresh():
        assert settings.BAR == 2


def test_configure_anew_stays_live(
    etcd_client: Client, make_settings: MakeSettings, step: Step
) -> None:
    etcd_client.config_source("app").save({"foo": "etcd"})
    settings = make_settings()
    seen: list[object] = []
    subscription = dynaconf_etcd.on_change(settings, "step")(lambda change: seen.append(change.new))
    step(settings)
    settings.configure()
    step(settings)
    assert settings.FOO == "etcd"
    eventually(lambda: seen == [1, 2])
    subscription.cancel()


def test_held_objects_stay_live(make_settings: MakeSettings, step: Step) -> None:
    settings = make_settings("foo = 1")
    step(settings)
    inner, get = internals.unwrap(settings), settings.get
    step(settings)
    assert inner.STEP == get("step") == settings["step"] == settings.step == 2


def test_defaults_of_validators_survive(make_settings: MakeSettings, step: Step) -> None:
    settings = make_settings(
        "[server]\nhost = 'h'\n",
        validators=[Validator("server.port", default=80), Validator("size", default=7)],
    )
    assert (settings.SERVER.port, settings.SIZE) == (80, 7)
    step(settings)
    assert (settings.SERVER.host, settings.SERVER.port, settings.SIZE) == ("h", 80, 7)


def test_lists_and_tables_of_arguments_are_not_shared_between_revisions(
    etcd_client: Client, make_settings: MakeSettings, step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNACONF_TABLE__b", "2")
    settings = make_settings(table={"a": 1}, items_=[1])
    before = dynaconf_etcd.snapshot(settings)
    step(settings)
    settings.TABLE["a"] = 3
    assert before.TABLE == {"a": 1, "b": 2}
    step(settings)
    assert settings.TABLE == {"a": 1, "b": 2}


def test_unreachable_names_are_split(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/foo__bar", "1")
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/foo.baz", "2")
    settings = make_settings()
    assert settings.FOO == {"bar": 1, "baz": 2}
    assert settings("foo.bar") == 1


def test_a_map_leaf_and_leaves_below_it(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/db", "{HOST: a, Port: 1}")
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/db.port", "2")
    assert make_settings().DB == {"HOST": "a", "Port": 2}


def test_many_updates_are_coalesced_to_the_newest(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"n": 0})
    builds = 0

    def count(_: object) -> dict[str, object]:
        nonlocal builds
        builds += 1
        return {}

    settings = make_settings(post_hooks=[count])
    assert settings.N == 0
    for n in range(1, 101):
        source.update({"n": n})
    eventually(lambda: settings.N == 100)
    assert builds <= 101


def test_memory_does_not_grow_with_updates(make_settings: MakeSettings, step: Step) -> None:
    import gc

    settings = make_settings("foo = 1")
    step(settings)
    gc.collect()
    kind = type(internals.unwrap(settings))
    before = sum(type(each) is kind for each in gc.get_objects())
    for _ in range(20):
        step(settings)
    gc.collect()
    assert sum(type(each) is kind for each in gc.get_objects()) <= before + 3


def test_settings_are_forgotten_with_their_last_reference(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    import gc
    import threading

    settings = make_settings()
    assert settings.get("a") is None
    kept = make_settings(etcd={"name": "other"})
    assert kept.get("a") is None
    del settings
    make_settings.__closure__  # noqa: B018
    cells = [cell.cell_contents for cell in make_settings.__closure__ or ()]
    made = next(each for each in cells if isinstance(each, list))
    made[:] = [each for each in made if each is kept]
    gc.collect()
    etcd_client.config_source("app").update({"a": 1})
    source = etcd_client.config_source("other")
    source.update({"a": 2})
    eventually(lambda: kept.get("a") == 2)
    dynaconf_etcd.close(kept)
    eventually(lambda: not any(t.name == "etcd-watch" for t in threading.enumerate()))


def test_typed_settings(etcd_client: Client, make_settings: MakeSettings) -> None:
    typed = pytest.importorskip("dynaconf.typed", reason="typed settings came with Dynaconf 3.3")
    from dynaconf_etcd import status

    class Schema(typed.Dynaconf):  # type: ignore[misc]
        port: int
        name: str = "none"

    source = etcd_client.config_source("app")
    source.save({"port": 1})
    settings = make_settings(factory=Schema)
    assert (settings.PORT, settings.NAME) == (1, "none")
    source.update({"port": "text"})
    eventually(lambda: status(settings).rejected)
    assert settings.PORT == 1
    source.update({}, delete=["port"])
    eventually(
        lambda: "must" in str(status(settings).rejected) or "required" in str(status(settings))
    )
    source.update({"port": 3, "name": "x"})
    eventually(lambda: settings.PORT == 3)
    assert settings.NAME == "x"
