"""Reasons hold no value from etcd, and no part of a secret that is long enough to tell."""

from __future__ import annotations

import pytest
from dynaconf import Dynaconf, ValidationError, Validator
from hypothesis import example, given
from hypothesis import settings as tuned
from hypothesis import strategies as st

from dynaconf_etcd import internals
from dynaconf_etcd.layers import Place, Revision
from dynaconf_etcd.reasons import hidden, reasons_of, secrets_in, told
from dynaconf_etcd.validating import QuietValidators, quieten
from etcd_core.leaves import encode_leaf
from etcd_core.mirror import Entry, View
from etcd_core.snapshot import LeafDecoder

PLACE = Place("/p", "app")


def _revision(**leaves: object) -> Revision:
    entries = {
        key: Entry(key, encode_leaf(value, path), 1, 1, 0)
        for key, path, value in (
            (PLACE.base + f"/{path}".encode(), path, value) for path, value in leaves.items()
        )
    }
    return Revision.decode(PLACE, View(1, entries), LeafDecoder())


def _leaks(text: str, secret: str) -> bool:
    parts = {secret[start : start + 6] for start in range(len(secret) - 5)}
    return any(part in text for part in parts)


# Nothing that a mask could be mistaken for.
secrets = st.text(st.characters(exclude_characters="*", exclude_categories=["Cs"]), min_size=6)


@given(secrets, st.integers(0, 20), st.integers(0, 40), st.text(max_size=5))
@example("it's\"TOPs3cr3t", 0, 40, "x_")
@example("line1\nTOPs3cr3t\\", 0, 40, "")
@example("a\x00b\u200bTOPs3cr3t", 2, 30, "7")
@example("straßeİTOPs3cr3t", 0, 40, "")
def test_no_part_of_a_secret_is_told(secret: str, start: int, size: int, around: str) -> None:
    part = secret[start : start + size]
    for quoted in (part, repr(part), part.upper(), part.lower(), repr(repr(secret))[:size]):
        text = hidden(f"{around}{quoted}{around} is wrong", (), {secret})
        assert not _leaks(text, secret)


@tuned(deadline=None)  # each example makes several settings objects
@given(secrets)
def test_no_error_of_a_validator_tells_a_secret(secret: str) -> None:
    def raises(value: str) -> bool:
        raise ValueError(f"bad {value.upper()!r} {value[:40]}")

    for validator in (
        Validator("api_password", condition=lambda value: False),
        Validator("api_password", cast=int, gt=10**400),
        Validator("api_password", condition=raises),
        Validator("api_password", eq=None),
    ):
        settings = internals.unwrap(Dynaconf(loaders=[]))
        internals.put(settings, "API_PASSWORD", secret)
        with pytest.raises(Exception) as caught:
            validator.validate(settings)
        reasons = reasons_of(caught.value, _revision(api_password=secret), None, settings)
        assert not _leaks(" ".join(reasons).replace("api_password", ""), secret)


def test_a_secret_that_did_not_change_is_not_told_either() -> None:
    accepted = _revision(db={"DSN": "postgres://u:TOPs3cr3t@h/db"}, port=1)
    revision = _revision(db={"DSN": "postgres://u:TOPs3cr3t@h/db"}, port=99999)
    error = ValidationError(f"db invalid for f({{'DSN': 'postgres://u:TOPs3cr3t@h/db'}}) {99999}")
    (reason,) = reasons_of(error, revision, accepted, None)
    assert "s3cr3t" not in reason
    assert "99999" not in reason
    assert reason.startswith("db invalid for f(")


def test_a_secret_from_a_file_is_not_told() -> None:
    settings = internals.unwrap(Dynaconf(db={"password": "TOPs3cr3t"}))
    assert secrets_in(settings) == {"TOPs3cr3t"}
    error = ValidationError("db must be otherwise but it is {'password': 'TOPs3cr3t'}")
    (reason,) = reasons_of(error, _revision(a=1), None, settings)
    assert "s3cr3t" not in reason


def test_of_other_errors_the_type_and_the_place_are_told() -> None:
    def check(value: str) -> bool:
        raise LookupError(f"no {value[3:]}")

    settings = internals.unwrap(Dynaconf(tok="abcTOPs3cr3t"))
    with pytest.raises(LookupError) as caught:
        Validator("tok", condition=check).validate(settings)
    text = told(caught.value)
    assert text.startswith("tok: LookupError at test_reasons.py:")
    assert text.endswith(" in check")
    with pytest.raises(ValueError, match="abcTOP") as failed:
        Validator("tok", cast=int).validate(settings)
    assert told(failed.value) == "tok: ValueError"


def test_errors_with_a_list_of_faults() -> None:
    class Faulty(ValueError):
        """As pydantic's: its text quotes the beginning and the end of the input."""

        def errors(self, **without: bool) -> list[dict[str, object]]:
            assert without == {
                "include_input": False,
                "include_url": False,
                "include_context": False,
            }
            return [{"type": "string_too_long", "loc": ("token", 0), "msg": "TOPs3cr3t is long"}]

    assert told(Faulty("TOPs3cr3t…")) == "Faulty (token.0: string_too_long)"


def test_errors_of_pydantic() -> None:
    pydantic = pytest.importorskip("pydantic")

    model = pydantic.create_model("Model", token=(pydantic.constr(max_length=5), ...))
    settings = internals.unwrap(Dynaconf(tok="TOPs3cr3t-" + "abcdefghij" * 30))
    with pytest.raises(pydantic.ValidationError) as caught:
        Validator("tok", cast=lambda value: model(token=value)).validate(settings)
    assert "tok: ValidationError (token: string_too_long)" in told(caught.value)


def test_short_values_are_hidden_as_words_only() -> None:
    assert hidden("port must lt 5 but it is 80 in 8080", {"80"}, ()) == (
        "port must lt 5 but it is *** in 8080"
    )
    assert hidden("host_prodserver_x", {"prodserver"}, ()) == "host_***_x"


def test_validators_that_the_program_runs_itself() -> None:
    settings = Dynaconf(api_password="TOPs3cr3t")
    quieten(internals.unwrap(settings))
    settings.validators.register(
        Validator("api_password", len_min=50), Validator("api_password", eq="x")
    )
    for run in (settings.validators.validate, settings.validators.validate_all):
        with pytest.raises(ValidationError, match="api_password must") as caught:
            run()
        assert "s3cr3t" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value.details)
        assert caught.value.__context__ is None
    assert isinstance(settings.validators, QuietValidators)
