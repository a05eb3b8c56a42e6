"""The names of what we log: one stable event per kind of record, for machines to read.

Messages are for people and may be reworded; ``record.etcd_event`` is not. Every record from INFO
up carries it, and the values of its message as ``record.etcd_<field>``. Owns no state.
"""

from __future__ import annotations

import enum

__all__ = ["Event", "Field", "fields"]

Field = str | int | float | bool | None | tuple[str, ...]
"""What a field may hold: what JSON has a form for, and never a value out of a configuration."""


class Event(str, enum.Enum):
    """What a record tells of. docs/observability.md says when, at which level, with which fields.

    A name, once released, keeps its meaning; new ones may come.
    """

    CALLBACK_BEHIND = "callback.behind"
    CALLBACK_FAILED = "callback.failed"
    CALLBACK_RUNNING = "callback.running"
    CANDIDACY_FAILING = "candidacy.failing"
    CANDIDACY_RESTORED = "candidacy.restored"
    CONFIG_EMPTY = "config.empty"
    CONFIG_FILE_DAMAGED = "config.file_damaged"
    CONFIG_FILE_UNWRITABLE = "config.file_unwritable"
    CONFIG_FROM_FILE = "config.from_file"
    CONFIG_HELD = "config.held"
    CONFIG_IGNORED = "config.ignored"
    CONFIG_REJECTED = "config.rejected"
    CONFIG_RESTORED = "config.restored"
    CONFIG_UNAVAILABLE = "config.unavailable"
    CONFIG_VANISHED = "config.vanished"
    CONNECTION_LOST = "connection.lost"
    CONNECTION_RESTORED = "connection.restored"
    HOSTING_FAILED = "hosting.failed"
    HOSTING_LOOPBACK = "hosting.loopback"
    HOSTING_NOT_READY = "hosting.not_ready"
    HOSTING_READY = "hosting.ready"
    HOSTING_SKIPPED = "hosting.skipped"
    INSTANCE_IGNORED = "instance.ignored"
    INTERNAL_ERROR = "internal.error"
    LEADERSHIP_LOST = "leadership.lost"
    LEADERSHIP_REGAINED = "leadership.regained"
    LOCK_LOST = "lock.lost"
    REGISTRATION_FAILING = "registration.failing"
    REGISTRATION_LOST = "registration.lost"
    REGISTRATION_MADE = "registration.made"
    REGISTRATION_REPLACED = "registration.replaced"
    REGISTRATION_RESTORED = "registration.restored"
    RELEASE_FAILED = "release.failed"
    STORE_RESET = "store.reset"
    TASK_NOT_SENT = "task.not_sent"
    TASK_REFUSED = "task.refused"
    TASK_SENT = "task.sent"
    TASK_UNREADABLE = "task.unreadable"
    TASKS_RESUMED = "tasks.resumed"
    TASKS_SUSPENDED = "tasks.suspended"
    TELEMETRY_BEHIND = "telemetry.behind"
    TELEMETRY_FAILED = "telemetry.failed"
    WATCH_FAILING = "watch.failing"
    WATCH_RESYNC = "watch.resync"


def fields(event: Event, **values: Field) -> dict[str, object]:
    """Return the ``extra`` of a log call: the event, and its fields as ``etcd_<name>``."""
    named: dict[str, object] = {f"etcd_{name}": value for name, value in values.items()}
    return {"etcd_event": event.value, **named}
