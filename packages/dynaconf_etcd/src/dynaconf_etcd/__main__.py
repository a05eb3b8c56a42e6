"""``python -m dynaconf_etcd push|pull|diff --settings package.module:settings``.

Moves a configuration between the settings files and etcd. Nothing is written without ``--yes``,
and nothing is thrown away as a whole without being asked for by name.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from etcd_core import Client, ConfigNotFound, EtcdError, InvalidArgument
from etcd_core.keys import config_prefix
from etcd_core.leaves import Value, flatten, nest

from . import internals, options, settings_file
from .internals import Settings
from .layers import MAIN
from .provenance import shown
from .settings_file import SettingsFile
from .values import Literal, is_ignored

_ENV_OF_MAIN = "default"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 1 where ``diff`` found a difference."""
    asked = _parser().parse_args(arguments)
    # The error below says it; without a handler, logging would say it on stderr as well.
    logging.getLogger("etcd_core").addHandler(logging.NullHandler())
    try:
        settings = _load(asked.settings)
        chosen = options.read(settings)
        with Client(chosen.config) as client:
            status: int = asked.command(asked, settings, client, chosen.name)
    except (EtcdError, OSError, ImportError, AttributeError, TypeError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dynaconf_etcd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="push|pull|diff")
    for command, text in (
        (_push, "make etcd hold what the settings files say"),
        (_pull, "write what etcd holds into a settings file"),
        (_diff, "show what a push would change"),
    ):
        sub = commands.add_parser(command.__name__.strip("_"), help=text, description=text)
        sub.add_argument("--settings", required=True, help="package.module:object")
        sub.add_argument("--env", help="the environment; the layer of all environments if left out")
        sub.set_defaults(command=command)
        if command is _push:
            sub.add_argument("--keep", action="store_true", help="keep keys the files lack")
            sub.add_argument(
                "--allow-missing",
                action="store_true",
                help="delete what the files lack although some of them were not found",
            )
            sub.add_argument(
                "--allow-empty",
                action="store_true",
                help="delete everything if the files are empty",
            )
        if command is _pull:
            sub.add_argument("output", help="a .toml, .yaml or .json file")
            sub.add_argument(
                "--replace", action="store_true", help="give up what only the file holds"
            )
        if command is not _diff:
            sub.add_argument("--yes", action="store_true", help="do it; else only show it")
    return parser


def _load(spec: str) -> Settings:
    """Return the settings at ``module:object``, made from their files alone."""
    module, _, name = spec.partition(":")
    sys.path.insert(0, "")
    try:
        held = getattr(importlib.import_module(module), name or "settings")
    except (EtcdError, ImportError, AttributeError):
        raise
    except Exception as exc:  # the user's module, and Django's demands on it
        raise InvalidArgument(f"{module} cannot be imported: {type(exc).__name__}: {exc}") from None
    arguments = dict(held._kwargs) if isinstance(held, internals.LazySettings) else {}
    for option in ("LOADERS_FOR_DYNACONF", "loaders"):
        arguments.pop(option, None)
    return internals.unwrap(
        internals.LazySettings(**{**arguments, "LOADERS_FOR_DYNACONF": False, "validators": []})
    )


def _in_files(settings: Settings, env: str | None) -> dict[str, Value]:
    """Return the leaves that the settings files hold for a layer."""
    wanted = (env or settings.get("DEFAULT_ENV_FOR_DYNACONF") or _ENV_OF_MAIN).lower()
    if env is not None and wanted not in (name.lower() for name in settings.loaded_envs):
        settings.setenv(env)
    separator = settings.get("NESTED_SEPARATOR_FOR_DYNACONF") or ""
    leaves: dict[str, Value] = {}
    for source, values in internals.history(settings).items():
        if source.loader in ("set_method", "default_settings") or source.env.lower() != wanted:
            continue
        for name, value in flatten({key: _plain(item) for key, item in values.items()}).items():
            if not is_ignored(name, separator, None if _is_plain(value) else {}):
                leaves[name] = value
    return leaves


def _is_plain(value: object) -> bool:
    return not isinstance(value, (dict, list))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in dict.items(value)}
    if isinstance(value, list):
        return [_plain(item) for item in list.__iter__(value)]
    if hasattr(value, "_dynaconf_encode"):
        return value._dynaconf_encode()  # a lazy value, as it was written
    return str(value) if isinstance(value, Literal) else value


def _in_etcd(client: Client, name: str, env: str | None) -> dict[str, Value]:
    try:
        return dict(client.config_source(_layer_name(name, env)).load())
    except ConfigNotFound:
        return {}


def _layer_name(name: str, env: str | None) -> str:
    layer = MAIN if env is None or env.lower() == _ENV_OF_MAIN else env.lower()
    return f"{name}.{layer}" if layer else name


def _show(old: Mapping[str, object], new: Mapping[str, object], *, keep: bool) -> int:
    """Print what differs; return how much."""
    count = 0
    for path in sorted(old.keys() | new.keys()):
        if path not in old:
            line = f"+ {path} = {shown(path, new[path])!r}"
        elif path not in new:
            if keep:
                continue
            line = f"- {path} = {shown(path, old[path])!r}"
        elif repr(old[path]) != repr(new[path]):
            line = f"~ {path} = {shown(path, old[path])!r} -> {shown(path, new[path])!r}"
        else:
            continue
        count += 1
        print(line)
    if not count:
        print("no difference")
    return count


def _push(asked: argparse.Namespace, settings: Settings, client: Client, name: str) -> int:
    source = client.config_source(_layer_name(name, asked.env))
    files = _in_files(settings, asked.env)
    stored = _in_etcd(client, name, asked.env)
    if not _show(stored, files, keep=asked.keep):
        return 0
    if not files and not asked.allow_empty:
        raise InvalidArgument(
            f"push: the settings files hold nothing for this layer ({_files_told(settings)}), so"
            f" everything would be deleted from etcd; add --allow-empty if that is meant"
        )
    missing = _missing_files(settings)
    gone = stored.keys() - files.keys()
    if files and gone and missing and not (asked.keep or asked.allow_missing):
        raise InvalidArgument(
            f"push: {', '.join(missing)} was not found, and what only that held would be deleted"
            f" from etcd; add --allow-missing if that is meant, or --keep"
        )
    if not asked.yes:
        print("nothing was written; add --yes to write it")
        return 0
    empty = asked.allow_empty
    revision = source.update(files) if asked.keep else source.save(files, allow_empty=empty)
    print(f"written at revision {revision}")
    return 0


def _files_told(settings: Settings) -> str:
    read = internals.loaded_files(settings)
    if read:
        return f"read: {', '.join(map(str, read))}"
    names = ", ".join(_missing_files(settings))
    return f"none of them was found: {names}" if names else "there are none"


def _missing_files(settings: Settings) -> list[str]:
    """Return the names, or patterns, of settings files that stand for no file that was read."""
    named = settings.get("SETTINGS_FILE_FOR_DYNACONF") or []
    read = [PurePath(path) for path in internals.loaded_files(settings)]
    return [
        str(name)
        for name in (named if isinstance(named, list) else re.split("[,;]", str(named)))
        if not any(path.match(os.path.normpath(str(name).strip())) for path in read)
    ]


def _pull(asked: argparse.Namespace, settings: Settings, client: Client, name: str) -> int:
    stored = _in_etcd(client, name, asked.env)
    if not stored:
        layer = _layer_name(name, asked.env)
        where = config_prefix(client.prefix, layer)
        raise ConfigNotFound(f"pull: etcd holds no settings {layer!r} (under {where})")
    path: str = asked.output
    file = SettingsFile.read(path)
    environments = settings.get("ENVIRONMENTS_FOR_DYNACONF")
    env = (asked.env or _ENV_OF_MAIN).lower() if environments else None
    text = settings_file.text_of(path, file.with_layer(nest(stored), env))
    old, new = settings_file.leaves_of(file.tables), settings_file.leaves_in(path, text)
    if not _show(old, new, keep=False) and file.exists:
        return 0
    lost = sorted(old.keys() - new.keys())
    if (lost or file.commented) and not asked.replace:
        _explain_loss(path, lost, commented=file.commented)
        return 2 if asked.yes else 0
    if not asked.yes:
        print("nothing was written; add --yes to write it")
        return 0
    settings_file.write(path, text)
    print(f"written to {path}")
    return 0


def _explain_loss(path: str, lost: Sequence[str], *, commented: bool) -> None:
    what = [*(["its comments"] if commented else []), *lost]
    print(
        f"error: {path} was not written: it would lose {', '.join(what)}; add --replace to"
        f" give that up, or name another file",
        file=sys.stderr,
    )


def _diff(asked: argparse.Namespace, settings: Settings, client: Client, name: str) -> int:
    files = _in_files(settings, asked.env)
    return 1 if _show(_in_etcd(client, name, asked.env), files, keep=False) else 0


if __name__ == "__main__":
    sys.exit(main())
