"""The RPCs this library sends, each with its retry rule (semantics 9.2). Data only.

``idempotent`` RPCs are sent again after an ambiguous failure; the others are not, because the first
copy may still be applied later. A caller whose request is safe to repeat for a reason of its own (a
guarded transaction, a private lease) says so per call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from . import messages as pb
from .credentials import Login

Req = TypeVar("Req")
Resp = TypeVar("Resp")


def find_method(name: str) -> pb.Method[Any, Any]:
    """Return the wire method called ``name``, such as ``"KV/Range"``."""
    methods: Mapping[str, pb.Method[Any, Any]] = pb.METHODS
    return methods[name]


@dataclass(frozen=True)
class Rpc(Generic[Req, Resp]):
    """One RPC: its method and how it may be retried.

    Attributes:
        name: Key of :data:`messages.METHODS`.
        idempotent: May be repeated after an ambiguous failure.
        write: May change the store, so that a missing answer is an unknown outcome.
        needs_leader: Ask the member to refuse it at once while it knows no leader; without that it
            waits for seven seconds and then fails ambiguously.
        ordered: Its answers carry the store's revision in linearizable order.
    """

    name: str
    idempotent: bool = False
    write: bool = False
    needs_leader: bool = True
    ordered: bool = False

    @property
    def method(self) -> pb.Method[Any, Any]:
        """The wire method."""
        return find_method(self.name)


RANGE: Rpc[pb.RangeRequest, pb.RangeResponse] = Rpc("KV/Range", idempotent=True, ordered=True)
# Served by whichever member answers, without a leader if need be, and possibly behind the others.
SERIALIZABLE_RANGE: Rpc[pb.RangeRequest, pb.RangeResponse] = Rpc(
    "KV/Range", idempotent=True, needs_leader=False
)
PUT: Rpc[pb.PutRequest, pb.PutResponse] = Rpc("KV/Put", write=True, ordered=True)
TXN: Rpc[pb.TxnRequest, pb.TxnResponse] = Rpc("KV/Txn", write=True, ordered=True)
OWN_TXN: Rpc[pb.TxnRequest, pb.TxnResponse] = Rpc("KV/Txn", idempotent=True, ordered=True)
"""A transaction on our own private lease, or fenced by our own revision: repeating it is safe, and
what a lost answer may have left behind goes with the lease."""
LEASE_GRANT: Rpc[pb.LeaseGrantRequest, pb.LeaseGrantResponse] = Rpc(
    "Lease/LeaseGrant", idempotent=True, write=True
)
LEASE_REVOKE: Rpc[pb.LeaseRevokeRequest, pb.LeaseRevokeResponse] = Rpc(
    "Lease/LeaseRevoke", idempotent=True, write=True
)
LEASE_KEEP_ALIVE: Rpc[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse] = Rpc(
    "Lease/LeaseKeepAlive", idempotent=True
)
WATCH: Rpc[pb.WatchRequest, pb.WatchResponse] = Rpc("Watch/Watch", idempotent=True)
MEMBER_LIST: Rpc[pb.MemberListRequest, pb.MemberListResponse] = Rpc(
    "Cluster/MemberList", idempotent=True
)
STATUS: Rpc[pb.StatusRequest, pb.StatusResponse] = Rpc(
    "Maintenance/Status", idempotent=True, needs_leader=False
)
AUTHENTICATE: Rpc[Login, pb.AuthenticateResponse] = Rpc("Auth/Authenticate", idempotent=True)

_BY_PATH_IDEMPOTENT = frozenset(
    {
        "KV/Range",
        "Lease/LeaseRevoke",
        "Lease/LeaseTimeToLive",
        "Lease/LeaseLeases",
        "Cluster/MemberList",
        "Maintenance/Status",
        "Maintenance/Hash",
        "Maintenance/HashKV",
    }
)
_WITHOUT_LEADER = frozenset(
    {"Maintenance/Status", "Maintenance/Hash", "Maintenance/HashKV", "Maintenance/Defragment",
     "Maintenance/Snapshot", "Maintenance/Alarm"}
)  # fmt: skip
_READS = frozenset({"KV/Range"}) | _BY_PATH_IDEMPOTENT - {"Lease/LeaseRevoke"}
_ORDERED = frozenset({"KV/Put", "KV/DeleteRange", "KV/Txn"})


def raw_rpc(path: str) -> Rpc[object, object]:
    """Return the rule for a call that a user made on ``client.raw``.

    Range is not counted as ordered here: the user may have asked for a serializable read, which a
    lagging member answers with an older revision.
    """
    name = path.lstrip("/").removeprefix("etcdserverpb.")
    return Rpc(
        name,
        idempotent=name in _BY_PATH_IDEMPOTENT,
        write=name not in _READS,
        needs_leader=name not in _WITHOUT_LEADER,
        ordered=name in _ORDERED,
    )
