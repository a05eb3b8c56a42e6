"""The command ``etcd-core``: the group without an application, told by options where etcd is.

The password comes from the environment or is asked for: other users see command lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import click

from ..config import Config, Tls
from ..errors import InvalidConfig
from ..hosting import HostOptions, ServiceHost
from ..keys import DEFAULT_PREFIX
from .commands import build_group

_PASSWORD = "ETCD_PASSWORD"


@dataclass
class _Given:
    """The options of one run."""

    endpoints: str
    prefix: str
    username: str | None
    cacert: str | None
    cert: str | None
    key: str | None
    _host: ServiceHost | None = field(default=None, init=False, repr=False)

    def host(self) -> ServiceHost:
        """Return the host of this run; the first call may ask for the password."""
        if self._host is None:
            try:
                self._host = ServiceHost(HostOptions(self._config()))
            except InvalidConfig as exc:
                raise click.UsageError(str(exc)) from exc
        return self._host

    def _config(self) -> Config:
        files = (self.cacert, self.cert, self.key)
        return Config(
            [each.strip() for each in self.endpoints.split(",") if each.strip()],
            username=self.username,
            password=None if self.username is None else _password(self.username),
            tls=Tls(*files) if any(files) else None,
            prefix=self.prefix,
        )


def build_command(dev: Callable[[Sequence[str]], int]) -> click.Group:
    """Return the command; ``dev`` runs a local etcd with the words that follow."""

    @click.group(help="Look at what is in etcd. What an option says comes before its variable.")
    @click.option(
        "--endpoints",
        envvar="ETCD_ENDPOINTS",
        show_envvar=True,
        default="127.0.0.1:2379",
        show_default=True,
        help="Members of the cluster, with commas between.",
    )
    @click.option(
        "--prefix",
        envvar="ETCD_PREFIX",
        show_envvar=True,
        default=DEFAULT_PREFIX,
        show_default=True,
        help="Under which all keys lie.",
    )
    @click.option(
        "--username",
        envvar="ETCD_USERNAME",
        show_envvar=True,
        help=f"Log in; the password is that of {_PASSWORD}, or is asked for.",
    )
    @click.option("--cacert", envvar="ETCD_CACERT", show_envvar=True, help="File of the CA.")
    @click.option("--cert", envvar="ETCD_CERT", show_envvar=True, help="File of our certificate.")
    @click.option("--key", envvar="ETCD_KEY", show_envvar=True, help="File of its key.")
    @click.pass_context
    def command(ctx: click.Context, /, **options: str) -> None:
        ctx.obj = _Given(**options)

    for each in build_group(_current_host).commands.values():
        command.add_command(each)

    @command.command(
        "dev",
        help="Run a local etcd for development.",
        add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def run_dev(ctx: click.Context, words: tuple[str, ...]) -> None:
        ctx.exit(dev(words))

    return command


def _current_host() -> ServiceHost:
    given = click.get_current_context().find_object(_Given)
    assert given is not None
    return given.host()


def _password(username: str) -> str:
    given = os.environ.get(_PASSWORD)
    if given:
        return given
    if not sys.stdin.isatty():
        raise click.UsageError(f"set {_PASSWORD}: there is no terminal to ask for it")
    asked: str = click.prompt(f"Password of {username}", hide_input=True, err=True)
    return asked
