"""Validators whose refusals tell no secret: at start, and whenever the program runs them itself.

Dynaconf runs them after the loaders, in whichever thread loads the settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dynaconf.validator import ValidationError, ValidatorList

from etcd_core import EtcdError

from .internals import Settings
from .layers import Refused
from .passing import may_pass
from .reasons import hidden, involved, secrets_in, told, values_from_etcd


class QuietValidators(ValidatorList):  # type: ignore[misc]  # Dynaconf has no types
    """Dynaconf's list of validators; what it raises quotes no value from etcd and no secret."""

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Run them, as Dynaconf does.

        Raises:
            ValidationError: One refuses, or failed with an error of its own.
        """
        self._quietly(super().validate, *args, **kwargs)

    def validate_all(self, *args: Any, **kwargs: Any) -> list[ValidationError]:
        """Run them all, as Dynaconf does.

        Raises:
            ValidationError: One refuses, or failed with an error of its own.
        """
        refusals = self._quietly(super().validate_all, *args, **kwargs)
        # 3.2 returns None.
        return [_quiet(refusal, self.settings) for refusal in refusals or ()]

    def _quietly(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except (EtcdError, Refused):
            raise  # by loading an environment; it quotes nothing
        except Exception as exc:  # validators of the user may raise anything
            refusal = _quiet(exc, self.settings)
            refusal.passing = may_pass(exc)
        # Raised outside the handler: as its context, the error would carry the values along.
        raise refusal


def quieten(settings: Settings) -> None:
    """Make the validators of a settings object tell no secret from now on."""
    validators = settings.validators
    if type(validators) is ValidatorList:
        validators.__class__ = QuietValidators


def _quiet(error: Exception, settings: Settings) -> ValidationError:
    values: set[str] = set()
    secrets: set[str] = set()
    for each in involved(error, settings):
        values |= values_from_etcd(each)
        secrets |= secrets_in(each)
    details = [
        (validator, hidden(str(text), values, secrets))
        for validator, text in getattr(error, "details", ())
    ]
    return ValidationError(hidden(told(error), values, secrets), details=details)
