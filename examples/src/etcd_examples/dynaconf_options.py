"""Where the examples find etcd: the same environment variables that the loader reads."""

from __future__ import annotations

import os


def etcd_config() -> dict[str, object]:
    """Return the arguments for ``etcd_core.Config``."""
    endpoints = os.environ.get("ETCD_ENDPOINTS_FOR_DYNACONF", "127.0.0.1:2379")
    prefix = os.environ.get("ETCD_PREFIX_FOR_DYNACONF", "/go-core")
    return {"endpoints": endpoints.split(","), "prefix": prefix}
