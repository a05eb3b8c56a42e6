"""Writing from a program and from the command line."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd.__main__ import main
from etcd_core import Client, ConfigNotFound, Conflict, InvalidArgument
from etcd_core.testing import EtcdServer

MakeSettings = Callable[..., Dynaconf]


def test_what_is_written_is_shown_on_return(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    settings = make_settings("foo = 'file'\n[server]\nhost = 'h'\n")
    assert settings.FOO == "file"
    for n in range(5):
        revision = dynaconf_etcd.write(settings, {"server": {"port": n}, "foo": "etcd"})
        assert (settings.SERVER.port, settings.SERVER.host, settings.FOO) == (n, "h", "etcd")
        assert dynaconf_etcd.status(settings).revision == revision
    assert dynaconf_etcd.write(settings, {"server.port": 4}) == revision
    dynaconf_etcd.delete(settings, "foo")
    assert settings.FOO == "file"
    dynaconf_etcd.delete(settings, ["server"])
    assert settings.SERVER == {"host": "h"}
    dynaconf_etcd.delete(settings, "nothing.of.this")


def test_a_layer_of_an_environment(etcd_client: Client, make_settings: MakeSettings) -> None:
    settings = make_settings(environments=True, env="production")
    assert settings.get("a") is None
    dynaconf_etcd.write(settings, {"a": 1}, env="production")
    dynaconf_etcd.write(settings, {"a": 2, "b": 2}, env="default")
    assert (settings.A, settings.B) == (1, 2)
    assert etcd_client.config_source("app.production").load()["a"] == 1
    assert etcd_client.config_source("app").load()["b"] == 2


def test_nothing_is_written_that_these_settings_refuse(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    revision = source.save({"port": 80})
    settings = make_settings(validators=[Validator("port", lt=1000)])
    assert settings.PORT == 80
    with pytest.raises(InvalidArgument, match="port") as caught:
        dynaconf_etcd.write(settings, {"port": 99999})
    assert "99999" not in str(caught.value)
    with pytest.raises(InvalidArgument):
        dynaconf_etcd.write(settings, {"port": {"x": 1}})
    assert source.load().revision == revision
    assert settings.PORT == 80


def test_a_change_by_somebody_else_is_a_conflict(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1, "b": 1})
    settings = make_settings(etcd={"watch": False})
    assert settings.A == 1
    source.update({"b": 2})
    dynaconf_etcd.write(settings, {"c": 1})
    assert settings.C == 1
    source.update({"a": 2})
    with pytest.raises(Conflict):
        dynaconf_etcd.write(settings, {"a": 3})
    settings.reload()
    dynaconf_etcd.write(settings, {"a": 3})
    assert settings.A == 3


@pytest.mark.parametrize(
    "values",
    [
        {"LOADERS_FOR_DYNACONF": ["os"]},
        {"_x": 1},
        {"yaml__a": 1},
        {"a": {"dynaconf_merge": True}},
        {"a": {"Upper": 1, "DYNACONF_MERGE": True}},
        {"a": [{"dynaconf_merge": True}]},
        {"secrets": "conf/.secrets.toml"},
        {"b": 2, "Secrets": ["conf/.secrets.toml"]},
        [1],
        "x",
        {"a": object()},
    ],
)
def test_what_would_never_be_seen_is_not_written(
    etcd_client: Client, make_settings: MakeSettings, values: object
) -> None:
    revision = etcd_client.config_source("app").save({"b": 1})
    settings = make_settings()
    with pytest.raises(InvalidArgument):
        dynaconf_etcd.write(settings, values)  # type: ignore[arg-type]
    assert etcd_client.config_source("app").load().revision == revision


def test_plain_secrets_are_named_in_the_refusal(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    """Loading takes them for paths of files to run, and ignores them; a table is a setting."""
    settings = make_settings()
    with pytest.raises(InvalidArgument, match=r"write: 'secrets' .*Dynaconf's own"):
        dynaconf_etcd.write(settings, {"secrets": "x"})
    dynaconf_etcd.write(settings, {"secrets": {"key": "x"}})
    assert settings.SECRETS.key == "x"


def test_wrong_arguments_are_told_as_such(make_settings: MakeSettings) -> None:
    settings = make_settings()
    for key in (5, b"x", [5], ""):
        with pytest.raises(InvalidArgument):
            dynaconf_etcd.delete(settings, key)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="environment"):
        dynaconf_etcd.write(settings, {"a": 1}, env=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="timeout"):
        dynaconf_etcd.write(settings, {"a": 1}, timeout="5")  # type: ignore[arg-type]


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def command(
    etcd_server: EtcdServer,
    etcd_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    module = f"config_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        f"""
import os
from dynaconf import Dynaconf
settings = Dynaconf(
    settings_files=os.environ.get("SETTINGS_FILES", "settings.toml").split(),
    root_path={str(tmp_path)!r},
    environments=False,
    loaders=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
    etcd={{
        "endpoints": [{etcd_server.endpoint!r}], "prefix": {etcd_client.prefix!r}, "name": "app"
    }},
)
"""
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> Done:
        status = main([*arguments, "--settings", f"{module}:settings"])
        return Done(status, *capsys.readouterr())

    return run


def test_push_diff_and_pull(
    etcd_client: Client,
    command: Command,
    tmp_path: Path,
) -> None:
    (tmp_path / "settings.toml").write_text(
        "debug = true\nhome = '@format {env[HOME]}'\npassword = 'hunter2'\n"
        "[server]\nport = 80\nlist = [1, 2]\n[databases.default]\nNAME = 'db'\n"
    )
    source = etcd_client.config_source("app")
    source.save({"stale": 1, "server.port": 1})
    shown = command("push")
    assert shown.status == 0, shown.stderr
    assert "+ debug = True" in shown.stdout
    assert "~ server.port = 1 -> 80" in shown.stdout
    assert "- stale = 1" in shown.stdout
    assert "hunter2" not in shown.stdout
    assert "nothing was written" in shown.stdout
    assert source.load().nested() == {"stale": 1, "server": {"port": 1}}
    assert command("diff").status == 1

    pushed = command("push", "--yes")
    assert pushed.status == 0, pushed.stderr
    assert source.load().nested() == {
        "debug": True,
        "home": "@format {env[HOME]}",
        "password": "hunter2",
        "server": {"port": 80, "list": [1, 2]},
        "databases": {"default": {"NAME": "db"}},
    }
    same = command("diff")
    assert (same.status, same.stdout) == (0, "no difference\n")

    source.update({"server.port": 81})
    pulled = command("pull", "out.yaml", "--yes")
    assert pulled.status == 0, pulled.stderr
    read = Dynaconf(settings_files=["out.yaml"], root_path=str(tmp_path))
    assert (read.SERVER.port, read.PASSWORD, read.DATABASES.default.NAME) == (81, "hunter2", "db")


def test_an_unreachable_etcd_is_one_line(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS_FOR_DYNACONF", '["127.0.0.1:1"]')
    monkeypatch.setenv("ETCD_TIMEOUT_FOR_DYNACONF", "0.3")
    monkeypatch.setenv("ETCD_DIAL_TIMEOUT_FOR_DYNACONF", "0.3")
    done = command("diff")
    assert done.status == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_push_without_files_deletes_nothing(
    etcd_client: Client, command: Command, tmp_path: Path
) -> None:
    source = etcd_client.config_source("app")
    revision = source.save({"a": 1, "b": 2})
    for arguments in (("push", "--yes"), ("push",)):
        refused = command(*arguments)
        assert refused.status == 2
        assert "none of them was found: settings.toml" in refused.stderr
        assert "--allow-empty" in refused.stderr
    assert source.load().revision == revision
    kept = command("push", "--yes", "--keep")
    assert (kept.status, kept.stdout) == (0, "no difference\n")
    assert command("push", "--yes", "--allow-empty").status == 0
    with pytest.raises(ConfigNotFound):
        source.load()


def test_a_push_without_one_of_the_files_deletes_nothing(
    etcd_client: Client, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SETTINGS_FILES", "settings.toml more.toml conf/*.toml")
    (tmp_path / "settings.toml").write_text("a = 1\n")
    source = etcd_client.config_source("app")
    revision = source.save({"a": 2, "b": 2})
    for arguments in (("push", "--yes"), ("push",)):
        refused = command(*arguments)
        assert refused.status == 2
        assert "more.toml, conf/*.toml was not found" in refused.stderr
        assert "--allow-missing" in refused.stderr
    assert source.load().revision == revision

    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "one.toml").write_text("c = 3\n")
    assert "push: more.toml was not found" in command("push", "--yes").stderr
    assert command("push", "--yes", "--keep").status == 0
    assert source.load().nested() == {"a": 1, "b": 2, "c": 3}
    assert command("push", "--yes", "--allow-missing").status == 0
    assert source.load().nested() == {"a": 1, "c": 3}


def test_a_pull_of_nothing_leaves_the_file(
    etcd_client: Client, command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("a = 1\n")
    for arguments in (("--yes",), ("--yes", "--replace"), ()):
        refused = command("pull", "settings.toml", *arguments)
        assert refused.status == 2
        assert f"{etcd_client.prefix}/config/app/" in refused.stderr
    assert file.read_text() == "a = 1\n"


def test_a_pull_writes_a_new_file_for_its_owner_only(
    etcd_client: Client, command: Command, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"a": 1, "password": "hunter2"})
    # What the settings files say makes no difference to a file that is not there.
    (tmp_path / "settings.toml").write_text("a = 1\npassword = 'hunter2'\n")
    assert command("diff").status == 0
    shown = command("pull", "new.toml")
    assert "+ a = 1" in shown.stdout
    assert "hunter2" not in shown.stdout
    assert not (tmp_path / "new.toml").exists()
    for name in ("new.toml", "new.yaml", "new.yml", "new.json"):
        done = command("pull", name, "--yes")
        assert done.status == 0, done.stderr
        file = tmp_path / name
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert "hunter2" in file.read_text()
        assert command("pull", name, "--yes").stdout == "no difference\n"
    file.chmod(0o640)
    etcd_client.config_source("app").update({"a": 2})
    assert command("pull", name, "--yes").status == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("a = 0\nmy_password = 'hunter2'\n[server]\nport = 1\n", "my_password, server.port"),
        ("# Why.\na = 0\n", "its comments"),
        ("a = 0  # why\n", "its comments"),
    ],
)
def test_a_pull_gives_nothing_up_unasked(
    etcd_client: Client, command: Command, tmp_path: Path, text: str, lost: str
) -> None:
    etcd_client.config_source("app").save({"a": 1})
    file = tmp_path / "settings.toml"
    file.write_text(text)
    refused = command("pull", "settings.toml", "--yes")
    assert refused.status == 2
    assert f"it would lose {lost}; add --replace" in refused.stderr
    assert "hunter2" not in refused.stdout + refused.stderr
    assert file.read_text() == text
    assert command("pull", "settings.toml", "--yes", "--replace").status == 0
    assert Dynaconf(settings_files=[str(file)]).as_dict() == {"A": 1}


def test_a_pull_keeps_the_sections_of_other_environments(
    etcd_client: Client,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENVIRONMENTS_FOR_DYNACONF", "true")
    etcd_client.config_source("app.production").save({"a": 2})
    file = tmp_path / "settings.toml"
    file.write_text("[default]\na = 1\n[production]\na = 1\n")
    module = next(tmp_path.glob("config_*.py"))
    module.write_text(module.read_text().replace("environments=False", "environments=True"))
    done = command("pull", "settings.toml", "--env", "production", "--yes")
    assert done.status == 0, done.stderr
    read = Dynaconf(settings_files=[str(file)], environments=True)
    assert (read.from_env("default").A, read.from_env("production").A) == (1, 2)


@pytest.mark.parametrize("output", ["settings", "settings.txt", "missing/settings.toml"])
def test_an_unusable_output_is_one_line(etcd_client: Client, command: Command, output: str) -> None:
    etcd_client.config_source("app").save({"a": 1})
    done = command("pull", output, "--yes")
    assert done.status == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_what_a_format_cannot_hold_leaves_the_file(
    etcd_client: Client, command: Command, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"a": b"\xff"})
    file = tmp_path / "settings.json"
    file.write_text('{"a": 1}')
    done = command("pull", "settings.json", "--yes")
    assert done.status == 2
    assert file.read_text() == '{"a": 1}'
    (tmp_path / "dates.json").write_text("{")
    assert command("pull", "dates.json", "--yes").status == 2


def test_a_date_in_a_file_is_not_pushed_as_text(
    etcd_client: Client, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text("day = 2024-01-02\n")
    done = command("push", "--yes")
    assert done.status == 2
    assert "would come back as text" in done.stderr
