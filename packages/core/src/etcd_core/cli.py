"""The command group that ``manage.py etcd`` and ``flask etcd`` mount. Needs the extra ``cli``.

Everything runs in the calling thread, on the application's own client. Values of settings that look
like secrets are masked. Flask mounts the group in every process, so gRPC is imported by the
commands only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

import click

from .errors import ConfigNotFound, EtcdError
from .hosting import ServiceHost
from .masking import masked, masked_metadata

if TYPE_CHECKING:
    from .client import Client
    from .discovery import ServiceEvent
    from .inventory import Instance, Queue, StoredConfig

T = TypeVar("T")

_WIDEST = 100
"""Characters of a cell; ``--json`` shows all of them."""

_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


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
        from .inventory import read_services

        found = _ask(lambda: read_services(client()))
        rows = [
            _instance_row(instance)
            for name, instances in found.items()
            if not names or name in names
            for instance in instances
        ]
        _print(rows, as_json)

    @group.command(help="Elections: who leads, with which fencing token, and how many wait.")
    @_AS_JSON
    def leaders(as_json: bool) -> None:
        from .inventory import read_elections

        _print([_queue_row(each) for each in _ask(lambda: read_elections(client()))], as_json)

    @group.command(help="Locks: which lease holds them, and how many wait.")
    @_AS_JSON
    def locks(as_json: bool) -> None:
        from .inventory import read_locks

        _print([_queue_row(each) for each in _ask(lambda: read_locks(client()))], as_json)

    @group.command(help="Stored configurations, or the settings of the one named.")
    @click.argument("name", required=False)
    @_AS_JSON
    def config(name: str | None, as_json: bool) -> None:
        from .inventory import read_configs

        if name is None:
            _print([_config_row(each) for each in _ask(lambda: read_configs(client()))], as_json)
            return
        _print(_ask(lambda: _settings(client(), name)), as_json)

    @group.command(help="Mark this machine's entries as draining and wait; for a preStop hook.")
    @click.option("--seconds", type=float, help="How long to wait; default the option DRAIN.")
    def drain(seconds: float | None) -> None:
        _drain(host(), seconds)

    @group.command(help="Follow the instances of a service until Ctrl-C.")
    @click.argument("name")
    def watch(name: str) -> None:
        with _ask(lambda: client().watch_service(name, _print_event)):
            _sleep_until_interrupted()

    @group.command(help="Check the connection, the rights and the options.")
    def doctor() -> None:
        if not _examine(host()):
            raise click.exceptions.Exit(1)

    return group


def _print_event(event: ServiceEvent) -> None:
    click.echo(f"{event.type!s:<9} {event.info.id} {event.info.address}")


def _sleep_until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


def _instance_row(instance: Instance) -> dict[str, object]:
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


def _queue_row(queue: Queue) -> dict[str, object]:
    return {
        "name": queue.name,
        "holder": queue.first.identity,
        "token": queue.first.token,
        "waiting": len(queue.waiting),
        "next": queue.waiting[0].identity if queue.waiting else "",
    }


def _config_row(config: StoredConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "leaves": config.leaves,
        "unreadable": len(config.table.errors),
        "revision": config.revision,
    }


def _settings(client: Client, name: str) -> list[dict[str, object]]:
    snapshot = client.config_source(name).load()
    rows: list[dict[str, object]] = [
        {"setting": path, "value": masked(path, snapshot[path])} for path in sorted(snapshot)
    ]
    rows += [{"setting": path, "value": "(does not decode)"} for path in sorted(snapshot.errors)]
    return rows


def _drain(host: ServiceHost, seconds: float | None) -> None:
    from .sharing import drain_here

    name = host.options.service_name
    if name is None:
        raise click.ClickException("SERVICE_NAME is not set: nothing is registered")
    marked = _ask(lambda: drain_here(host.client.scope(), name))
    for info in marked:
        click.echo(f"draining {info.name} {info.id}")
    if not marked:
        click.echo(f"{name}: no entry of this machine")
        return
    time.sleep(host.options.drain if seconds is None else seconds)


def _examine(host: ServiceHost) -> bool:
    """Print one line per check; return whether all passed."""
    from .inventory import read_services
    from .lease import normalise_ttl

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
        result = check()
    except EtcdError as exc:
        click.echo(f"FAILED  {what}: {exc}")
        return False
    click.echo(f"ok      {what}: {result}")
    return True


def _ask(question: Callable[[], T]) -> T:
    try:
        return question()
    except ConfigNotFound as exc:
        raise click.ClickException(str(exc)) from exc
    except EtcdError as exc:
        raise click.ClickException(f"etcd: {exc}") from exc


def _print(rows: Sequence[dict[str, object]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows, default=str))
    elif not rows:
        click.echo("nothing")
    else:
        for line in _table(rows):
            click.echo(line)


def _table(rows: Sequence[dict[str, object]]) -> Iterable[str]:
    header = list(rows[0])
    lines = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _cell(value: object) -> str:
    text = _spelled(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _spelled(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
        return " ".join(f"{name}={part}" for name, part in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)
