"""What etcd says, asked through etcdctl: a witness independent of the library."""

from __future__ import annotations

import json

from etcd_core.testing import EtcdServer


def keys_under(server: EtcdServer, prefix: str) -> list[str]:
    """Return the keys under ``prefix``."""
    return server.ctl("get", "--prefix", prefix, "--keys-only").split()


def revision(server: EtcdServer) -> int:
    """Return the store's revision."""
    answer = json.loads(server.ctl("get", "no-such-key", "-w", "json"))
    return int(answer["header"]["revision"])


def lease_ids(server: EtcdServer) -> set[str]:
    """Return the ids of all leases, in hex."""
    answer = json.loads(server.ctl("lease", "list", "-w", "json"))
    return {f"{lease['id']:x}" for lease in answer.get("leases") or []}
