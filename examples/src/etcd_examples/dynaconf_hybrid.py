"""Files below, etcd over them, the environment on top; and where each value comes from.

ETCD_ENDPOINTS_FOR_DYNACONF=127.0.0.1:2379 python -m etcd_examples.dynaconf_hybrid
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dynaconf import Dynaconf

import dynaconf_etcd

FILE = """
[server]
host = "from-the-file"
port = 8080
timeout = 30
"""


def main() -> None:
    """Show the three layers, and the fall back to the file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "settings.toml").write_text(FILE)
        os.environ["EXAMPLE_SERVER__TIMEOUT"] = "5"
        settings = Dynaconf(
            envvar_prefix="EXAMPLE",
            root_path=folder,
            settings_files=["settings.toml"],
            loaders=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
            etcd={"name": "example-hybrid"},
        )
        dynaconf_etcd.write(settings, {"server": {"port": 9090, "timeout": 60}})
        for key in ("server.host", "server.port", "server.timeout"):
            found = dynaconf_etcd.explain(settings, key)
            layer = found.provider.layer if found.provider else "nowhere"
            hides = ", ".join(each.layer for each in found.overrides) or "nothing"
            print(f"{key} = {found.value} from {layer}, hides {hides}")

        dynaconf_etcd.delete(settings, "server.port")
        print(f"deleted in etcd, server.port is {settings.SERVER.port} again")
        dynaconf_etcd.close(settings)


if __name__ == "__main__":
    main()
