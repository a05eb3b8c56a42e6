"""Settings from etcd alone. Give the endpoint in ``ETCD_ENDPOINTS_FOR_DYNACONF``.

ETCD_ENDPOINTS_FOR_DYNACONF=127.0.0.1:2379 python -m etcd_examples.dynaconf_etcd_only
"""

from __future__ import annotations

from dynaconf import Dynaconf

import dynaconf_etcd


def main() -> None:
    """Write a setting, read it, change it, read it again."""
    settings = Dynaconf(loaders=["dynaconf_etcd.loader"], etcd={"name": "example-only"})

    dynaconf_etcd.write(settings, {"debug": True, "server": {"host": "localhost", "port": 8080}})
    print(f"debug is {settings.DEBUG}, the port is {settings.SERVER.port}")

    # write() returns when this process shows the new value; other processes follow at once.
    dynaconf_etcd.write(settings, {"server.port": 9090})
    print(
        f"the port is {settings.SERVER.port} at revision {dynaconf_etcd.status(settings).revision}"
    )

    dynaconf_etcd.close(settings)


if __name__ == "__main__":
    main()
