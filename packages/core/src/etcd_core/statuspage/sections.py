"""The fragment: what a reading found, as markup. Pure.

Problems come first, in the line of counts as well as in each table. Rows carry a ``data-key``, by
which the page's script recognises them in the next fragment.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from ..masking import masked, masked_metadata
from .markup import Html, el, join
from .reading import MOST_LEASES, Section, Status

if TYPE_CHECKING:
    from ..inventory import Contender, Instance, LeaseTime, Queue, StoredConfig
    from .ages import Age

T = TypeVar("T")
Row = tuple[object, ...]
"""A row's key and its cells."""

NARROW = ("Lease", "Age", "Fencing token")
MOST_INSTANCES = 200
"""Rows per service."""
MOST_WAITING = 5
MOST_SETTINGS = 500
"""Rows per configuration."""
MOST_ROWS = 2000
"""Rows of settings on the page."""
MOST_OPEN = 12
"""A service with more instances is folded."""
SHORT_TEXT = 80
LONG_TEXT = 4000

AGES = (
    "etcd stores no times. An age is what this process knows from its own readings of this page:"
    " “≥” where the key was there at the first of them already, “—” where there was none before."
    " When a lease was renewed follows from the time it has left;"
    f" the first {MOST_LEASES} are asked."
)
_NO_AGE = 2.0


def fragment(status: Status) -> Html:
    """Return everything that is read anew: the counts and the tables."""
    if status.error is not None:
        inner = join(
            el("p", f"etcd cannot be read: {status.error}", role="alert", class_="etcd-trouble"),
            el("p", _origin(status), class_="etcd-origin"),
        )
    else:
        inner = join(
            el("p", _origin(status), class_="etcd-origin"),
            _counts(status),
            _services(status),
            _queues(status, status.elections, "elections", "Elections", "Leader"),
            _queues(status, status.locks, "locks", "Locks", "Holder"),
            _configs(status),
            el("p", AGES, class_="etcd-quiet"),
        )
    return el("div", inner, class_="etcd", data_read_at=f"{status.at:.3f}")


def _origin(status: Status) -> Html:
    known = status.revision or None
    return join(
        "Prefix ",
        el("code", status.prefix),
        " on ",
        el("code", ", ".join(status.endpoints)),
        known and join(", revision ", el("span", known)),
    )


# -- counts ------------------------------------------------------------------------------------


def _counts(status: Status) -> Html:
    members = [each for _, instances in status.services.items for each in instances]
    return el(
        "ul",
        _count(
            "services",
            f"{_number(len(members), 'instance')} of"
            f" {_number(len(status.services.items), 'service')}",
            _problems(status, members),
        ),
        _count("elections", f"{_number(len(status.elections.items), 'leader')}"),
        _count(
            "locks",
            f"{_number(len(status.locks.items), 'lock')} held",
            _waiting_badge(status.locks.items),
        ),
        _count(
            "configs",
            _number(len(status.configs.items), "configuration"),
            _unreadable(sum(len(each.table.errors) for each in status.configs.items)),
        ),
        class_="etcd-counts",
    )


def _count(section: str, text: str, *badges: object) -> Html:
    return el("li", el("a", text, href=f"#etcd-{section}"), *badges, data_key=section)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _problems(status: Status, instances: Iterable[Instance]) -> Html:
    """Return one badge per kind of problem, with its count."""
    counts: dict[tuple[str, str], int] = {}
    for each in instances:
        for label, kind, _ in _states(status, each):
            counts[label, kind] = counts.get((label, kind), 0) + 1
    return join(*(_badge(f"{count} {label}", kind) for (label, kind), count in counts.items()))


def _waiting_badge(queues: Iterable[Queue]) -> Html | None:
    waiting = sum(len(queue.waiting) for queue in queues)
    return _badge(f"{waiting} waiting", "note") if waiting else None


def _unreadable(count: int) -> Html | None:
    return _badge(f"{count} unreadable", "bad") if count else None


def _badge(text: str, kind: str, title: str = "") -> Html:
    return el("span", text, class_=f"etcd-badge etcd-{kind}", title=title or None)


# -- services ----------------------------------------------------------------------------------


def _services(status: Status) -> Html:
    found = status.services
    blocks = [_service(status, name, instances) for name, instances in found.items]
    return _section("services", "Services", found, blocks, "No service is registered.")


def _service(status: Status, name: str, instances: Sequence[Instance]) -> Html:
    ranked = sorted(instances, key=lambda each: not _states(status, each))
    rows = [_instance(status, each) for each in ranked[:MOST_INSTANCES]]
    return _folded(
        f"service {name}",
        name,
        join(
            el("span", _number(len(instances), "instance"), class_="etcd-quiet"),
            _problems(status, instances),
        ),
        join(
            _table(f"Instances of {name}", ("Instance", "State", "Metadata", "Lease", "Age"), rows),
            _more(len(instances) - len(rows), "instance", f"etcd services {name}"),
        ),
        unfolded=len(instances) <= MOST_OPEN,
    )


def _instance(status: Status, instance: Instance) -> Row:
    states = _states(status, instance)
    badges = [_badge(*state) for state in states] or [_badge("registered", "good")]
    return (
        instance.id,
        _name_and_address(instance),
        join(*badges),
        _metadata(instance),
        _lease(status, instance.lease_id),
        _age(status, instance.created),
    )


def _states(status: Status, instance: Instance) -> Sequence[tuple[str, str, str]]:
    """Return what is wrong with an instance, or special: label, kind and explanation."""
    found = []
    if instance.info is None:
        found.append(("malformed", "bad", instance.trouble))
    if not instance.lease_id:
        found.append(("no lease", "bad", "It stays until somebody deletes its key."))
    lease = status.leases.get(instance.lease_id)
    if lease is not None and lease.late:
        found.append(("not renewed", "bad", "Its lease runs out unless its process comes back."))
    if instance.draining:
        found.append(("draining", "note", "It takes no new requests, and is about to stop."))
    return found


def _name_and_address(instance: Instance) -> Html:
    address = instance.info.address if instance.info is not None else ""
    if address in ("", instance.id):
        return join(instance.id)
    return join(instance.id, el("span", address, class_="etcd-below"))


def _metadata(instance: Instance) -> Html:
    if instance.info is None:
        return el("span", instance.trouble, class_="etcd-quiet")
    pairs = masked_metadata(instance.info.metadata).items()
    return join(
        *(el("span", _text(f"{name}={value}"), class_="etcd-pair") for name, value in pairs)
    )


def _lease(status: Status, lease_id: int) -> Html:
    time_left = status.leases.get(lease_id)
    if time_left is None:
        return el("span", "—", title=f"Lease {lease_id:x}; not asked for" if lease_id else None)
    return el("span", _renewed(time_left), title=_lease_title(lease_id, time_left))


def _renewed(lease: LeaseTime) -> str:
    return "expired" if lease.remaining < 0 else f"renewed {_seconds(lease.renewed)} ago"


def _lease_title(lease_id: int, lease: LeaseTime) -> str:
    return (
        f"Lease {lease_id:x}: TTL {_seconds(lease.granted)}, {_seconds(max(0, lease.remaining))}"
        " left unless it is renewed"
    )


# -- elections and locks -----------------------------------------------------------------------


def _queues(status: Status, found: Section[Queue], kind: str, title: str, holder: str) -> Html:
    rows = [
        (
            queue.name,
            queue.name,
            _contender(queue.first),
            _waiting(queue),
            _lease(status, queue.first.lease_id),
            queue.first.token,
            _age(status, queue.first.token),
        )
        for queue in found.items
    ]
    columns = ("Name", holder, "Waiting, in order", "Lease", "Fencing token", "Age")
    tables = [_table(title, columns, rows)] if rows else []
    return _section(kind, title, found, tables, f"No {title.lower()}.")


def _contender(contender: Contender) -> Html:
    return el("span", contender.identity, title=f"Lease {contender.lease_id:x}")


def _waiting(queue: Queue) -> Html:
    if not queue.waiting:
        return el("span", "nobody", class_="etcd-quiet")
    shown = [el("li", _contender(each)) for each in queue.waiting[:MOST_WAITING]]
    rest = len(queue.waiting) - len(shown)
    return join(el("ol", *shown), f"and {rest} more" if rest else None)


# -- configurations ----------------------------------------------------------------------------


def _configs(status: Status) -> Html:
    left = MOST_ROWS
    blocks = []
    for config in status.configs.items:
        most = min(left, MOST_SETTINGS)
        left -= min(most, config.leaves)
        blocks.append(_config(status, config, most))
    return _section(
        "configs", "Configurations", status.configs, blocks, "No configuration is stored."
    )


def _config(status: Status, config: StoredConfig, most: int) -> Html:
    rows = list(islice(_settings(config), most))
    age = _age_text(status.ages(config.revision))
    return _folded(
        f"config {config.name}",
        config.name,
        join(
            el(
                "span",
                f"{_number(config.leaves, 'setting')}, last written at revision {config.revision}",
                f", {age} ago" if age else "",
                class_="etcd-quiet",
            ),
            _unreadable(len(config.table.errors)),
        ),
        join(
            _table(f"Settings of {config.name}", ("Setting", "Value"), rows),
            _more(config.leaves - len(rows), "setting", f"etcd config {config.name}"),
        ),
    )


def _settings(config: StoredConfig) -> Iterable[Row]:
    for path, error in sorted(config.table.errors.items()):
        yield f"! {path}", path, _badge("unreadable", "bad", str(error))
    for path in sorted(config.table.found):
        value = masked(path, config.table.found[path].value)
        yield path, path, el("code", _text(_spelled(value)))


def _spelled(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


# -- parts -------------------------------------------------------------------------------------


def _section(name: str, title: str, found: Section[T], blocks: Sequence[Html], empty: str) -> Html:
    heading = f"etcd-{name}-title"
    if found.error is not None:
        blocks = [el("p", found.error, class_="etcd-trouble")]
    elif not blocks:
        blocks = [el("p", empty, class_="etcd-quiet")]
    return el(
        "section",
        el("h2", title, id=heading),
        *blocks,
        _more(found.unread, "key", "etcd"),
        id=f"etcd-{name}",
        aria_labelledby=heading,
    )


def _more(count: int, noun: str, command: str) -> Html | None:
    if not count:
        return None
    text = f"{_number(count, f'more {noun}')}: the command "
    return el("p", text, el("code", command), " shows all.", class_="etcd-quiet")


def _folded(key: str, title: str, about: Html, inside: Html, *, unfolded: bool = False) -> Html:
    summary = el("summary", el("h3", title), " ", about)
    return el("details", summary, inside, data_key=key, open=unfolded)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Row]) -> Html:
    head = el("tr", *(el("th", column, scope="col") for column in columns))
    return el(
        "table",
        el("caption", caption, class_="etcd-hidden"),
        el("thead", head),
        el("tbody", *(_row(columns, *row) for row in rows)),
    )


def _row(columns: Sequence[str], key: object, first: object, *others: object) -> Html:
    # The labels are for narrow screens, where each cell has a line of its own.
    cells = (
        el("td", cell, data_label=column, class_="etcd-narrow" if column in NARROW else None)
        for column, cell in zip(columns[1:], others, strict=True)
    )
    return el("tr", el("th", first, scope="row"), *cells, data_key=key)


def _age(status: Status, revision: int) -> Html:
    text = _age_text(status.ages(revision)) or "—"
    return el("span", text, title=f"Since revision {revision}")


def _age_text(age: Age | None) -> str:
    """Return how old something is; nothing where the first look at it was just now."""
    if age is None or (not age.exact and age.at_least < _NO_AGE):
        return ""
    spelled = _seconds(age.at_least)
    return spelled if age.exact else f"≥ {spelled}"


_UNITS: Mapping[str, int] = {"d": 86400, "h": 3600, "min": 60}


def _seconds(seconds: float) -> str:
    for unit, length in _UNITS.items():
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _text(text: str) -> Html:
    """Return a text that may be long: its rest is folded behind its beginning, and cut in the end.

    The value is looked at as a whole before: half a secret would not be recognised.
    """
    if len(text) <= SHORT_TEXT:
        return join(text)
    cut = f" … ({len(text):,} characters)" if len(text) > LONG_TEXT else ""
    return el("details", el("summary", text[:SHORT_TEXT]), text[SHORT_TEXT:LONG_TEXT], cut)
