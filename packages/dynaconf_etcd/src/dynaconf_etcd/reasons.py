"""Why a revision is refused, in words that hold no value from etcd and no secret. Pure functions.

Only Dynaconf's own messages are shown, masked: what other code puts into an error may be a part of
a value, shortened, escaped or in another case. Of such an error its type and its place are told.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType
from typing import Final

import dynaconf
from dynaconf.validator import ValidationError, Validator

from etcd_core.masking import MASK, masked

from . import internals
from .internals import LazySettings, Settings, SourceMetadata
from .layers import Refused, Revision

_SHOWN: Final = frozenset({"", "true", "false", "none", "null"})
_HIDDEN: Final = "***"
_LEGIBLE: Final = 5
"""Most characters of a secret in a row that a text may hold by chance."""

_NOT_THE_USERS: Final = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in (
        os.path.dirname(dynaconf.__file__),
        os.path.dirname(__file__),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("purelib"),
    )
)


def reasons_of(
    error: Exception, revision: Revision, accepted: Revision | None, settings: Settings | None
) -> tuple[str, ...]:
    """Return the reasons in an error that a build raised.

    Args:
        error: What was raised.
        revision: What is refused: every value that it brought is masked.
        accepted: What is shown so far.
        settings: What is shown so far, files and environment included: its secrets are masked.
    """
    if isinstance(error, Refused):
        return error.reasons
    secrets = set(_secrets_in_leaves(revision))
    for each in involved(error, settings):
        secrets |= secrets_in(each)
    return (hidden(told(error), _new_values(revision, accepted), secrets),)


def told(error: Exception) -> str:
    """Return what may be told of an error, still to be masked."""
    if isinstance(error, ValidationError):
        return str(error)
    kind = type(error).__name__
    if kind == "TOMLDecodeError":
        return f"{kind}: {error}"  # of a file; it tells a line and quotes nothing
    path, place = _whereabouts(error)
    faults = _faults_of(error)
    text = f"{path}: {kind}" if path else kind
    if faults:
        text += f" ({', '.join(faults)})"
    return f"{text} at {place}" if place else text


def _faults_of(error: Exception) -> list[str]:
    """Return places and types of the faults in an error of pydantic's; its messages quote input."""
    try:
        listed = error.errors(include_input=False, include_url=False, include_context=False)  # type: ignore[attr-defined]
        return [
            ": ".join(filter(None, (".".join(map(str, each["loc"])), str(each["type"]))))
            for each in listed
        ]
    except Exception:  # it has no such method, or another one of that name
        return []


def _whereabouts(error: Exception) -> tuple[str, str]:
    """Return the setting that was validated, and the line of the program's that raised."""
    path = place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if validated := _validated_in(trace.tb_frame):
            path, place = validated, ""
        file = os.path.realpath(code.co_filename)
        if not file.startswith(_NOT_THE_USERS) and os.path.isabs(code.co_filename):
            place = f"{os.path.basename(file)}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return path, place


def _validated_in(frame: FrameType) -> str:
    if frame.f_code.co_name not in ("_validate_names", "_validate_items"):
        return ""
    name = frame.f_locals.get("name")
    return name if isinstance(frame.f_locals.get("self"), Validator) and name else ""


# -- settings ----------------------------------------------------------------------------------


def involved(error: Exception, settings: Settings | None) -> list[Settings]:
    """Return the settings that an error may quote, their environments included.

    Those are the ones given, and whichever were at work when it was raised: what a build fails on
    may be in the files of an environment that only the build has loaded.
    """
    found: dict[int, Settings] = {}
    pending = [] if settings is None else [settings]
    trace = error.__traceback__
    while trace is not None:
        pending += filter(None, map(_settings_of, list(trace.tb_frame.f_locals.values())))
        trace = trace.tb_next
    while pending:
        each = pending.pop()
        if id(each) not in found:
            found[id(each)] = each
            pending += _environments(each)
    return list(found.values())


def _settings_of(value: object) -> Settings | None:
    # By type: to a proxy of the user's, even isinstance() may be a reason to load something.
    if issubclass(type(value), Settings):
        return value
    return internals.wrapped(value) if issubclass(type(value), LazySettings) else None


def _environments(settings: Settings) -> list[Settings]:
    """Return what ``from_env`` made of the settings."""
    # An object that failed half-way through its making may lack anything.
    if internals.HAS_CORE:
        made = getattr(settings.__dict__.get("__core__"), "config", None)
        cache = getattr(made, "env_cache", {})
    else:
        cache = settings.__dict__.get("_env_cache", {})
    return [each for lazy in list(cache.values()) if (each := internals.wrapped(lazy)) is not None]


# -- values ------------------------------------------------------------------------------------


def _new_values(revision: Revision, accepted: Revision | None) -> set[str]:
    values: set[str] = set()
    for layer, table in revision.tables.items():
        known = accepted.leaves(layer) if accepted is not None else {}
        for path, leaf in table.found.items():
            if path not in known or known[path].raw != leaf.raw:
                values.update(texts_of(leaf.value))
    return values


def texts_of(value: object) -> Iterator[str]:
    """Yield a raw value and all values in it as an error may quote them."""
    if isinstance(value, dict):
        for item in dict.values(value):
            yield from texts_of(item)
        yield dict.__repr__(value)
    elif isinstance(value, list):
        for item in list.__iter__(value):
            yield from texts_of(item)
        yield list.__repr__(value)
    elif not isinstance(value, bool):
        yield str(value)


def _secrets_in_leaves(revision: Revision) -> Iterator[str]:
    for table in revision.tables.values():
        for path, leaf in table.found.items():
            yield from _secrets_in(path, leaf.value)


def secrets_in(settings: Settings) -> set[str]:
    """Return the values in a settings object that look like secrets, wherever they come from.

    What is hidden by others counts too: a validator may be for any environment.
    """
    secrets: set[str] = set()
    if not _is_made(settings):
        return secrets
    for provided in (internals.raw_store(settings), *_provided(settings).values()):
        for name, value in list(dict.items(provided)):
            secrets.update(_secrets_in(str(name).lower(), value))
    return secrets


def values_from_etcd(settings: Settings) -> set[str]:
    """Return the values that etcd provided, as an error may quote them."""
    return {
        text
        for source, provided in (_provided(settings) if _is_made(settings) else {}).items()
        if source.loader == internals.LOADER
        for value in list(provided.values())
        for text in texts_of(value)
    }


def _provided(settings: Settings) -> dict[SourceMetadata, dict[str, object]]:
    history = dict(internals.history(settings))
    return {source: dict(provided) for source, provided in history.items()}


def _is_made(settings: Settings) -> bool:
    """Tell whether there is something in it: it may have failed at the start of its making."""
    return ("__core__" if internals.HAS_CORE else "_loaded_by_loaders") in settings.__dict__


def _secrets_in(path: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in dict.items(value) if isinstance(value, dict) else value.items():
            yield from _secrets_in(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for item in list.__iter__(value) if isinstance(value, list) else value:
            yield from _secrets_in(path, item)
    elif value is not None and not isinstance(value, (bool, internals.Lazy)):
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        if masked(path, text) == MASK:
            yield text


# -- masking -----------------------------------------------------------------------------------


def hidden(text: str, values: Iterable[str], secrets: Iterable[str]) -> str:
    """Return ``text`` without the values, and without any part of the secrets worth knowing."""
    marks = [False] * len(text)
    lowered = _lowered(text)
    known = {_lowered(form) for value in values for form in _forms(value)}
    for form in known - _SHOWN:
        _mark(marks, lowered, form, whole_words=len(form) <= _LEGIBLE)
    for form in {_lowered(form) for secret in secrets for form in _forms(secret)} - _SHOWN:
        if len(form) <= _LEGIBLE:
            _mark(marks, lowered, form, whole_words=True)
    _mark_parts(marks, lowered, secrets)
    return _struck_out(text, marks)


def _forms(value: str) -> Iterator[str]:
    """Yield the ways in which a text is usually quoted; case is dealt with elsewhere."""
    yield value
    yield repr(value)[1:-1]
    yield repr(repr(value))[1:-1]
    yield value.encode("unicode_escape").decode("ascii")
    yield value.upper()
    yield value.casefold()


def _lowered(text: str) -> str:
    """Lower the case and keep every character in its place."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text)


def _mark(marks: list[bool], text: str, form: str, *, whole_words: bool) -> None:
    start = text.find(form)
    while start >= 0:
        end = start + len(form)
        if not (whole_words and _in_a_word(text, start, end)):
            marks[start:end] = [True] * (end - start)
        start = text.find(form, start + 1)


def _in_a_word(text: str, start: int, end: int) -> bool:
    around = text[start - 1 : start] + text[end : end + 1]
    return any(char.isalnum() or char == "_" for char in around)


def _mark_parts(marks: list[bool], text: str, secrets: Iterable[str]) -> None:
    """Mark whatever the text has in common with a secret, if that is long enough to tell."""
    size = _LEGIBLE + 1
    windows = {text[start : start + size] for start in range(len(text) - size + 1)}
    shared: set[str] = set()
    for secret in secrets:
        for form in map(_lowered, _forms(secret)):
            shared.update(
                form[start : start + size]
                for start in range(len(form) - size + 1)
                if form[start : start + size] in windows
            )
    for part in shared:
        _mark(marks, text, part, whole_words=False)


def _struck_out(text: str, marks: list[bool]) -> str:
    shown: list[str] = []
    for char, mark in zip(text, marks, strict=True):
        if not mark:
            shown.append(char)
        elif not shown or shown[-1] != _HIDDEN:
            shown.append(_HIDDEN)
    return "".join(shown)
