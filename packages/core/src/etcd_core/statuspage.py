"""What a status page shows of everything under a client's prefix, as one HTML fragment.

Pure but for :func:`collect`, which reads etcd. Every value is escaped; settings that look like
secrets are masked. The adapters put the fragment into their own pages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from typing import TYPE_CHECKING

from .errors import EtcdError

if TYPE_CHECKING:
    from .client import Client
    from .inventory import Instance, Queue, StoredConfig

MOST_SETTINGS = 500
MOST_CONFIGS = 50

STYLE = """
.etcd table { border-collapse: collapse; width: 100%; margin: 0 0 1.5em; }
.etcd th, .etcd td { text-align: left; padding: .35em .8em .35em 0; vertical-align: top;
  border-bottom: 1px solid #8884; overflow-wrap: anywhere; }
.etcd h2 { margin: 1em 0 .4em; }
.etcd .empty { opacity: .7; }
.etcd .trouble { border: 1px solid #b00; padding: .6em .8em; }
.etcd code { white-space: pre-wrap; }
"""


@dataclass(frozen=True)
class Status:
    """What was found.

    Attributes:
        prefix: The client's prefix.
        error: Why etcd could not be read; then the rest is empty.
        settings: By configuration name, the dotted path and the masked value of each leaf.
    """

    prefix: str
    error: str | None = None
    services: Mapping[str, Sequence[Instance]] = field(default_factory=dict)
    elections: Sequence[Queue] = ()
    locks: Sequence[Queue] = ()
    configs: Sequence[StoredConfig] = ()
    settings: Mapping[str, Sequence[tuple[str, object]]] = field(default_factory=dict)


def collect(client: Client, *, timeout: float = 3.0) -> Status:
    """Read everything; never raises for an etcd that is down. Blocks.

    Args:
        client: Whose prefix to read.
        timeout: Seconds for each of the reads.
    """
    from . import inventory

    try:
        configs = inventory.read_configs(client, timeout=timeout)
        return Status(
            client.prefix,
            services=inventory.read_services(client, timeout=timeout),
            elections=inventory.read_elections(client, timeout=timeout),
            locks=inventory.read_locks(client, timeout=timeout),
            configs=configs,
            settings={
                each.name: _settings(client, each.name, timeout)
                for each in configs[:MOST_CONFIGS]
            },
        )  # fmt: skip
    except EtcdError as exc:
        return Status(client.prefix, error=str(exc))


def _settings(client: Client, name: str, timeout: float) -> Sequence[tuple[str, object]]:
    from .inventory import masked

    snapshot = client.config_source(name).load(timeout=timeout)
    return [
        (path, masked(path, snapshot[path])) for path in islice(sorted(snapshot), MOST_SETTINGS)
    ]


def render(status: Status) -> str:
    """Return the fragment; its style is :data:`STYLE`."""
    if status.error is not None:
        inner = f'<p class="trouble" role="alert">etcd cannot be read: {escape(status.error)}</p>'
    else:
        inner = "".join(_sections(status))
    return f'<div class="etcd"><p>Prefix <code>{escape(status.prefix)}</code></p>{inner}</div>'


def _sections(status: Status) -> Iterable[str]:
    yield _section(
        "Services",
        ("Service", "Instance", "Address", "Metadata", "Lease", "Revision"),
        [
            _instance_row(name, each)
            for name, instances in status.services.items()
            for each in instances
        ],
    )
    columns = ("Name", "Holder", "Fencing token", "Waiting")
    for title, queues in (("Elections", status.elections), ("Locks", status.locks)):
        yield _section(
            title, columns, [(each.name, each.holder, each.token, each.waiting) for each in queues]
        )
    yield _section(
        "Configurations",
        ("Name", "Leaves", "Revision"),
        [(each.name, each.leaves, each.revision) for each in status.configs],
    )
    for name, settings in status.settings.items():
        yield _section(f"Configuration {name}", ("Setting", "Value"), settings)


def _instance_row(service: str, instance: Instance) -> Sequence[object]:
    info = instance.info
    return (
        service,
        instance.key.rpartition("/")[2],
        "(malformed)" if info is None else info.address,
        "" if info is None else _pairs(info.metadata),
        f"{instance.lease_id:x}",
        instance.revision,
    )


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    heading = f"<h2>{escape(title)}</h2>"
    if not rows:
        return f'{heading}<p class="empty">None.</p>'
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _pairs(metadata: Mapping[str, str]) -> str:
    from .inventory import masked

    return ", ".join(f"{name}={masked(name, value)}" for name, value in metadata.items())
