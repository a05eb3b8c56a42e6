"""Being told of changes: of one setting, and of all.

ETCD_ENDPOINTS_FOR_DYNACONF=127.0.0.1:2379 python -m etcd_examples.dynaconf_signals
"""

from __future__ import annotations

import threading

from dynaconf import Dynaconf

import dynaconf_etcd


def main() -> None:
    """Subscribe, change two settings at once, and wait for both calls."""
    settings = Dynaconf(loaders=["dynaconf_etcd.loader"], etcd={"name": "example-signals"})
    dynaconf_etcd.write(settings, {"log": {"level": "INFO"}, "limit": 10})
    calls = threading.Semaphore(0)

    @dynaconf_etcd.on_change(settings, "log.level")
    def set_level(change: dynaconf_etcd.SettingChange) -> None:
        print(f"log.level: {change.old} -> {change.new}")
        calls.release()

    def report(sender: object, *, changed: frozenset[str], **_: object) -> None:
        if changed:
            print(f"changed: {', '.join(sorted(changed))}")
            calls.release()

    with dynaconf_etcd.config_changed.connected_to(report, sender=settings):
        dynaconf_etcd.write(settings, {"log": {"level": "DEBUG"}, "limit": 20})
        calls.acquire(timeout=10)
        calls.acquire(timeout=10)
    set_level.cancel()
    dynaconf_etcd.close(settings)


if __name__ == "__main__":
    main()
