"""When the entries of a schedule ran last, so that the next leader goes on from there.

One key per entry, ``P/schedules/<name>/<entry>``, written by the leader only: each write is guarded
by its term, so one that comes late from a former leader is refused. Used by the scheduler's thread.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from etcd_core.errors import NotLeader
from etcd_core.events import Event, fields
from etcd_core.keys import prefix_range_end, require_name
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import OWN_TXN, RANGE

if TYPE_CHECKING:
    from etcd_core import Client, Term

_log = logging.getLogger("etcd_core.tasks")


@dataclass(frozen=True)
class Record:
    """One entry.

    Attributes:
        last_run: When it was due last.
        count: How often it ran.
        pending: The id of a message that was about to be sent; None once it certainly was.
    """

    last_run: datetime
    count: int = 0
    pending: str | None = None


class Ledger:
    """The records of one schedule.

    Args:
        client: Where they are.
        name: The schedule's name.
    """

    def __init__(self, client: Client, name: str) -> None:
        require_name("schedule", "name", name)
        self._channel = client.scope().engine.channel
        self._prefix = f"{client.prefix.rstrip('/')}/schedules/{name.strip('/')}/"
        self._what = f"schedule {name!r}"

    def load(self) -> dict[str, Record]:
        """Return all records by entry. One request.

        Raises:
            EtcdError: etcd cannot be reached or refused.
        """
        prefix = self._prefix.encode()
        request = pb.RangeRequest(key=prefix, range_end=prefix_range_end(prefix))
        answer = self._channel.unary(RANGE, request, what=self._what)
        found = ((unquote(kv.key[len(prefix) :].decode()), kv.value) for kv in answer.kvs)
        records = ((entry, self._decode(entry, value)) for entry, value in found)
        return {entry: record for entry, record in records if record is not None}

    def write(self, term: Term, entry: str, record: Record) -> None:
        """Store a record, if ``term`` lasts. One request.

        Raises:
            NotLeader: Another process leads by now; nothing was written.
            EtcdError: etcd cannot be reached or refused.
        """
        value = {"last_run": record.last_run.isoformat(), "count": record.count}
        if record.pending is not None:
            value["pending"] = record.pending
        key = self._prefix + quote(entry, safe="")
        put = pb.PutRequest(key=key.encode(), value=json.dumps(value).encode())
        request = pb.TxnRequest(
            compare=[term.guard().build_message()], success=[pb.RequestOp(request_put=put)]
        )
        # Safe to repeat: the record is the same, and nobody else writes while the term lasts.
        if not self._channel.unary(OWN_TXN, request, what=self._what).succeeded:
            raise NotLeader(f"{self._what}: another process leads")

    def _decode(self, entry: str, value: bytes) -> Record | None:
        try:
            data = json.loads(value)
            last_run = datetime.fromisoformat(data["last_run"])
            return Record(last_run, int(data.get("count", 0)), data.get("pending"))
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            _log.warning(
                "%s: the record of %r is unreadable: %s",
                self._what,
                entry,
                exc,
                extra=fields(Event.TASK_UNREADABLE, entry=entry, reason=str(exc)),
            )
            return None
