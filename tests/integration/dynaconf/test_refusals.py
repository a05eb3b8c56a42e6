"""What a refusal tells, at start and while running: no secret, once, and when it is over."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, ValidationError, Validator

import dynaconf_etcd
from etcd_core import Client
from etcd_core.testing import EtcdServer, eventually

MakeSettings = Callable[..., Dynaconf]
SECRET = "shrt-s3cr3t"


def _refuses(value: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("values", "validator", "text"),
    [
        ({"api_password": SECRET}, Validator("api_password", len_min=50), "api_password must"),
        ({"api_password": SECRET}, Validator("api_password", cast=int), "api_password: ValueError"),
        ({"db": {"dsn": SECRET}}, Validator("db", condition=_refuses), "db invalid for _refuses"),
        ({"port": 99999}, Validator("port", lt=1000), "port must lt 1000"),
    ],
)
@pytest.mark.parametrize("snapshot", [False, True])
def test_a_refusal_at_start_tells_no_secret(
    etcd_client: Client,
    make_settings: MakeSettings,
    tmp_path: Path,
    values: dict[str, object],
    validator: Validator,
    text: str,
    snapshot: bool,
) -> None:
    etcd_client.config_source("app").save(values)
    settings = make_settings(
        etcd={"watch": False, "snapshot": str(tmp_path / "saved") if snapshot else False},
        validators=[validator],
    )
    with pytest.raises(ValidationError) as caught:
        settings.get("a")
    assert str(caught.value).startswith(text)
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value.details)
    assert SECRET not in printed
    assert "99999" not in str(caught.value)


def test_a_secret_of_a_file_is_not_told_at_start(make_settings: MakeSettings) -> None:
    settings = make_settings(
        f"[db]\npassword = '{SECRET}'\n",
        etcd={"watch": False},
        validators=[Validator("db", condition=_refuses)],
    )
    with pytest.raises(ValidationError) as caught:
        settings.get("a")
    assert SECRET not in str(caught.value)


def test_validators_that_are_registered_later(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"api_password": SECRET})
    settings = make_settings()
    for step in range(2):
        source.update({"step": step})
        eventually(lambda step=step: settings.get("step") == step)
        settings.validators.register(Validator("step", lt=9))
        settings.validators.append(Validator("api_password", len_min=50))
        with pytest.raises(ValidationError, match="api_password") as caught:
            settings.validators.validate()
        assert SECRET not in str(caught.value)
        settings.validators.pop()


def _events(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    return [
        (record.__dict__["etcd_event"], record.__dict__["etcd_revision"])
        for record in caplog.records
        if record.__dict__.get("etcd_event") in ("config.rejected", "config.restored")
    ]


def test_one_line_for_each_cause_and_one_for_the_end(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 80, "host": "a"})
    settings = make_settings(validators=[Validator("port", lt=1000), Validator("host", len_max=3)])
    assert settings.PORT == 80

    def rejected_at(revision: int) -> dynaconf_etcd.Rejection:
        def seen() -> dynaconf_etcd.Rejection | None:
            rejected = dynaconf_etcd.status(settings).rejected
            return rejected if rejected is not None and rejected.revision == revision else None

        return eventually(seen)

    first = source.update({"port": 99999})
    since = rejected_at(first).since
    for n in range(3):
        again = rejected_at(source.update({"other": n}))
        assert again.since == since
    other = source.update({"port": 81, "host": "too long"})
    rejected_at(other)
    good = source.update({"host": "b"})
    eventually(lambda: settings.PORT == 81)
    assert dynaconf_etcd.status(settings).rejected is None
    later = source.update({"host": "c"})
    eventually(lambda: settings.HOST == "c")
    assert later > good
    expected = [("config.rejected", first), ("config.rejected", other), ("config.restored", good)]
    eventually(lambda: _events(caplog) == expected)
    assert {each.levelno for each in caplog.records if "port" in each.message} == {logging.WARNING}


def test_one_path_in_two_spellings_is_no_refusal(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    etcd_client.config_source("app").save({"twice_told": 1})
    settings = make_settings()
    assert settings.TWICE_TOLD == 1
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/TWICE_TOLD", "2")
    etcd_client.config_source("app").update({"other": 1})
    eventually(lambda: settings.get("other") == 1)
    assert settings.TWICE_TOLD == 1
    assert dynaconf_etcd.status(settings).rejected is None
    (told,) = [each for each in caplog.messages if "TWICE_TOLD" in each]
    assert "is 'twice_told' in another case, and that one counts" in told
    assert make_settings(etcd={"watch": False}).TWICE_TOLD == 1


def test_the_short_argument_without_importing_the_package(
    etcd_server: EtcdServer, etcd_client: Client
) -> None:
    etcd_client.config_source("app").save({"a": 1})
    script = f"""
    import sys
    from dynaconf import Dynaconf
    settings = Dynaconf(
        loaders=["dynaconf_etcd.loader"],
        etcd={{"endpoints": [{etcd_server.endpoint!r}], "prefix": {etcd_client.prefix!r},
               "name": "app", "password": None}},
    )
    assert "dynaconf_etcd" not in sys.modules
    assert settings.A == 1
    assert settings.as_dict() == {{"A": 1}}, settings.as_dict()
    import dynaconf_etcd
    from etcd_core import Client, Config
    from etcd_core.testing import eventually
    with Client(Config([{etcd_server.endpoint!r}], prefix={etcd_client.prefix!r})) as client:
        client.config_source("app").update({{"a": 2}})
    eventually(lambda: settings.A == 2)
    assert settings.as_dict() == {{"A": 2}}
    dynaconf_etcd.close(settings)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
