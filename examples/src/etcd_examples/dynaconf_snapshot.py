"""Starting while etcd is away, with the values that were good last.

ETCD_ENDPOINTS_FOR_DYNACONF=127.0.0.1:2379 python -m etcd_examples.dynaconf_snapshot
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dynaconf import Dynaconf

import dynaconf_etcd

LOADERS = ["dynaconf_etcd.loader"]


def main() -> None:
    """Run once with etcd, then once without."""
    with tempfile.TemporaryDirectory() as folder:
        etcd = {"name": "example-snapshot", "snapshot": str(Path(folder, "last-known-good"))}
        first = Dynaconf(loaders=LOADERS, etcd=etcd)
        dynaconf_etcd.write(first, {"greeting": "hello"})
        dynaconf_etcd.close(first)

        # The next start sees the value, and so the file has it.
        second = Dynaconf(loaders=LOADERS, etcd=etcd)
        print(f"with etcd: {second.GREETING}")
        dynaconf_etcd.close(second)

        os.environ["ETCD_ENDPOINTS_FOR_DYNACONF"] = "127.0.0.1:1"
        os.environ["ETCD_DIAL_TIMEOUT_FOR_DYNACONF"] = "0.5"
        third = Dynaconf(loaders=LOADERS, etcd=etcd)
        status = dynaconf_etcd.status(third) if third.GREETING else None
        print(f"without etcd: {third.GREETING}, stale: {bool(status and status.stale)}")
        dynaconf_etcd.close(third)


if __name__ == "__main__":
    main()
