"""A bad update is refused as a whole, and said so.

ETCD_ENDPOINTS_FOR_DYNACONF=127.0.0.1:2379 python -m etcd_examples.dynaconf_validators
"""

from __future__ import annotations

import threading

from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from etcd_core import Client, Config, InvalidArgument
from etcd_examples.dynaconf_options import etcd_config


def main() -> None:
    """Let somebody else write a port that is none."""
    settings = Dynaconf(
        loaders=["dynaconf_etcd.loader"],
        etcd={"name": "example-validators"},
        validators=[Validator("port", gte=1, lte=65535, default=8080)],
    )
    dynaconf_etcd.write(settings, {"port": 80, "motd": "hello"})

    try:
        dynaconf_etcd.write(settings, {"port": 99999})
    except InvalidArgument as exc:
        print(f"not written: {exc}")

    refused = threading.Event()

    @dynaconf_etcd.config_rejected.connect
    def tell(sender: object, *, reasons: tuple[str, ...], **_: object) -> None:
        print(f"refused: {'; '.join(reasons)}")
        refused.set()

    # Somebody without our validators writes it anyway.
    with Client(Config(**etcd_config())) as client:  # type: ignore[arg-type]
        client.config_source("example-validators").update({"port": 99999, "motd": "bye"})
    refused.wait(10)
    print(f"still {settings.PORT} and {settings.MOTD!r}")
    dynaconf_etcd.close(settings)


if __name__ == "__main__":
    main()
