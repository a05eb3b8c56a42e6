"""The command group that ``manage.py etcd`` and ``flask etcd`` mount. One thread, no state.

It works on the application's own client. Values that look like secrets are masked.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from ..errors import EtcdError
from ..hosting import ServiceHost
from ..keys import join
from ..masking import masked, masked_metadata
from .terminal import Row, ask, log_muted, printable, reader_is_gone, say, show

if TYPE_CHECKING:
    from ..client import Client
    from ..discovery import ServiceEvent
    from ..inventory import Instance, Queue, StoredConfig

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_GLANCE_SECONDS = 1.0
"""How often a command that follows looks whether it is still read."""
_LONGEST = 86400.0
"""Seconds that a command may be told to wait."""


def _require_seconds(
    ctx: click.Context, param: click.Parameter, value: float | None
) -> float | None:
    if value is None or (math.isfinite(value) and 0 <= value <= _LONGEST):
        return value
    raise click.BadParameter(f"must be seconds from 0 to {_LONGEST:.0f}")


def build_group(host: Callable[[], ServiceHost]) -> click.Group:
    """Return the group, for the application whose ``host()`` is looked up when a command runs."""

    @click.group(name="etcd", help="Look at what this application has in etcd.")
    def group() -> None:
        pass

    def client() -> Client:
        return host().client

    @group.command(help="Registered instances, of every service or of those named.")
    @click.argument("names", nargs=-1)
    @_AS_JSON
    def services(names: tuple[str, ...], as_json: bool) -> None:
        from ..inventory import read_services

        found = ask(lambda: read_services(client()))
        rows = [
            _instance_row(instance)
            for name, instances in found.items()
            if not names or name in names
            for instance in instances
        ]
        where = _place(client(), "services")
        missing = [name for name in names if name not in found]
        if rows or as_json or not missing:
            show(rows, as_json, where)
        if missing:
            raise click.ClickException(
                printable(f"nothing is registered under {', '.join(where + m for m in missing)}")
            )

    @group.command(help="Elections: who leads, with which fencing token, and how many wait.")
    @_AS_JSON
    def leaders(as_json: bool) -> None:
        from ..inventory import read_elections

        rows = [_queue_row(each) for each in ask(lambda: read_elections(client()))]
        show(rows, as_json, _place(client(), "elections"))

    @group.command(help="Locks: which lease holds them, and how many wait.")
    @_AS_JSON
    def locks(as_json: bool) -> None:
        from ..inventory import read_locks

        rows = [_queue_row(each) for each in ask(lambda: read_locks(client()))]
        show(rows, as_json, _place(client(), "locks"))

    @group.command(help="Stored configurations, or the settings of the one named.")
    @click.argument("name", required=False)
    @_AS_JSON
    def config(name: str | None, as_json: bool) -> None:
        from ..inventory import read_configs

        if name is None:
            rows = [_config_row(each) for each in ask(lambda: read_configs(client()))]
        else:
            rows = ask(lambda: _settings(client(), name))
        show(rows, as_json, _place(client(), "config"))

    @group.command(help="Mark this machine's entries as draining and wait; for a preStop hook.")
    @click.argument("name", required=False)
    @click.option(
        "--seconds",
        type=float,
        callback=_require_seconds,
        help="How long to wait; default the option DRAIN.",
    )
    def drain(name: str | None, seconds: float | None) -> None:
        _drain(host(), name or host().options.service_name, seconds)

    @group.command(help="Follow the instances of a service until Ctrl-C.")
    @click.argument("name")
    def watch(name: str) -> None:
        events: queue.SimpleQueue[ServiceEvent] = queue.SimpleQueue()
        # Printed here: where nobody reads any more, it is this thread that has to end.
        with ask(lambda: client().watch_service(name, events.put)):
            _follow(events)

    @group.command(help="Check the connection, the rights and the options.")
    def doctor() -> None:
        if not _examine(host()):
            raise click.exceptions.Exit(1)

    return group


def _place(client: Client, kind: str) -> str:
    return join(client.prefix, kind) + "/"


def _follow(events: queue.SimpleQueue[ServiceEvent]) -> None:
    """Print events until Ctrl-C, or until nobody reads them."""
    try:
        while not reader_is_gone():
            try:
                event = events.get(timeout=_GLANCE_SECONDS)
            except queue.Empty:
                continue
            say(f"{event.type!s:<9} {event.info.id} {event.info.address}")
    except KeyboardInterrupt:
        return


def _instance_row(instance: Instance) -> Row:
    info = instance.info
    return {
        "service": instance.service,
        "id": instance.id,
        "address": info.address if info is not None else "",
        "state": _state(instance),
        "lease": f"{instance.lease_id:x}",
        "metadata": masked_metadata(info.metadata) if info is not None else {},
    }


def _state(instance: Instance) -> str:
    if instance.info is None:
        return "malformed"
    if not instance.lease_id:
        return "no lease"
    return "draining" if instance.draining else "registered"


def _queue_row(queue: Queue) -> Row:
    return {
        "name": queue.name,
        "holder": queue.first.identity,
        "token": queue.first.token,
        "waiting": len(queue.waiting),
        "next": queue.waiting[0].identity if queue.waiting else "",
    }


def _config_row(config: StoredConfig) -> Row:
    return {
        "name": config.name,
        "leaves": config.leaves,
        "unreadable": len(config.table.errors),
        "revision": config.revision,
    }


def _settings(client: Client, name: str) -> list[Row]:
    snapshot = client.config_source(name).load()
    rows: list[Row] = [
        {"setting": path, "value": masked(path, snapshot[path])} for path in sorted(snapshot)
    ]
    rows += [{"setting": path, "value": "(does not decode)"} for path in sorted(snapshot.errors)]
    return rows


def _drain(host: ServiceHost, name: str | None, seconds: float | None) -> None:
    from ..sharing import drain_here

    if name is None:
        raise click.ClickException("no service is configured; name the one to drain")
    marked = ask(lambda: drain_here(host.client.scope(), name))
    for info in marked:
        say(f"draining {info.name} {info.id}")
    if not marked:
        say(f"{name}: no entry of this machine under {_place(host.client, 'services')}{name}/")
        return
    time.sleep(host.options.drain if seconds is None else seconds)


def _examine(host: ServiceHost) -> bool:
    """Print one line per check; return whether all passed."""
    from ..inventory import read_services
    from ..lease import normalise_ttl

    client = host.client
    keeper = client.scope().engine.keeper

    def lease() -> str:
        granted = keeper.grant(normalise_ttl("doctor", host.options.ttl, 15.0), what="doctor")
        keeper.revoke(granted)
        return f"TTL {granted.ttl} s"

    def timed() -> str:
        begun = time.monotonic()
        services = read_services(client)
        return f"{len(services)} services, {(time.monotonic() - begun) * 1000:.1f} ms"

    checks: Sequence[tuple[str, Callable[[], str]]] = (
        (f"read {client.prefix} at {', '.join(client.config.endpoints)}", timed),
        ("grant a lease", lease),
    )
    return all([_report(what, check) for what, check in checks])  # noqa: C419  # run every check


def _report(what: str, check: Callable[[], str]) -> bool:
    try:
        with log_muted():
            result = check()
    except EtcdError as exc:
        say(f"FAILED  {what}: {exc}")
        return False
    say(f"ok      {what}: {result}")
    return True
