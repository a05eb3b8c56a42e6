"""What writers of etcd must not achieve, and what no message may tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, ValidationError, Validator

import dynaconf_etcd
from etcd_core import Client
from etcd_core.testing import eventually

MakeSettings = Callable[..., Dynaconf]
SECRET = "hunter2hunter2"
FILE = f"""
[default]
db_password = "short"
[production]
db_password = "{SECRET}"
"""


@pytest.mark.parametrize(
    "others",
    [
        {"dynaconf include": "EVIL"},
        {" dynaconf_include": "EVIL"},
        {"includes_for_dynaconf____x": "EVIL"},
        {"\tincludes_for_dynaconf": "EVIL"},
        {"secrets": "EVIL"},
        {"secrets": ["EVIL"]},
        {"dynaconf": {"include": "EVIL"}, "nested_separator": "_"},
    ],
)
def test_no_name_makes_dynaconf_run_a_file(
    etcd_client: Client, make_settings: MakeSettings, tmp_path: Path, others: dict[str, object]
) -> None:
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(marker)!r}, 'w')")
    source = etcd_client.config_source("app")
    source.save({**_with_path(others, str(evil)), "a": 1})
    settings = make_settings("[default]\nfoo = 1", environments=True)
    assert settings.A == 1
    source.update({"a": 2})
    eventually(lambda: settings.A == 2)
    settings.reload()
    for keep in (False, True):
        # Keeping makes arguments of everything that is set so far.
        assert settings.from_env("production", keep=keep).A == 2
    assert not marker.exists()


def _with_path(values: dict[str, object], path: str) -> dict[str, object]:
    replaced: dict[str, object] = json.loads(json.dumps(values).replace("EVIL", path))
    return replaced


def test_merge_marks_in_any_spelling_are_ignored(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNACONF_TABLE__zzz", "1")
    etcd_client.config_source("app").save(
        {
            "dynaconf merge": True,
            "table": {"DynaConf Merge": False, "list": [{"DYNACONF_MERGE": 1}], "a": 1},
        }
    )
    settings = make_settings(etcd={"watch": False})
    assert settings.as_dict() == {"TABLE": {"a": 1, "list": [{}], "zzz": 1}}


def test_a_secret_of_another_environment_is_not_told_at_start(make_settings: MakeSettings) -> None:
    settings = make_settings(
        FILE,
        etcd={"watch": False},
        environments=True,
        validators=[Validator("DB_PASSWORD", env="production", len_min=30)],
    )
    with pytest.raises(ValidationError, match="DB_PASSWORD must") as caught:
        settings.get("a")
    assert SECRET not in str(caught.value) + str(caught.value.details)


def test_a_secret_of_another_environment_is_not_told_later(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"step": 0})
    settings = make_settings(FILE, environments=True)
    assert settings.STEP == 0
    settings.validators.register(Validator("DB_PASSWORD", env="production", len_min=30))
    source.update({"step": 1})
    rejected = eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert "DB_PASSWORD must" in str(rejected)
    assert SECRET not in str(rejected)


def test_validators_of_an_environment_tell_no_secret(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    etcd_client.config_source("app.production").save({"api_token": SECRET})
    settings = make_settings(environments=True, etcd={"watch": False})
    environment = settings.from_env("production")
    environment.validators.register(Validator("API_TOKEN", len_min=50))
    with pytest.raises(ValidationError, match="API_TOKEN must") as caught:
        environment.validators.validate()
    assert SECRET not in str(caught.value)
