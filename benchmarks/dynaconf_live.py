"""Dynaconf with etcd: what a change costs to arrive, what a rebuild costs, what a read costs.

Prints a table: each row against a floor taken in the same run, in interleaved rounds.
``python benchmarks/dynaconf_live.py [--rounds N]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd import internals, live
from dynaconf_etcd.layers import Revision
from etcd_core import Client, Config
from etcd_core.mirror import View
from etcd_core.testing import EtcdServer, eventually

LOADERS = ["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"]
FILE = "".join(f"[table{i}]\nname = 'file'\n" for i in range(10))
CHANGES_PER_ROUND = 30


def main() -> None:
    """Run all rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    version = importlib.metadata.version("dynaconf")
    rows: list[tuple[str, str, str, str]] = []
    with EtcdServer() as server, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "settings.toml").write_text(FILE)
        bench = Bench(server, folder)
        rows.append(bench.change_to_value(rounds))
        rows.append(bench.rebuild(rounds))
        rows += bench.reads(rounds)
    print(f"Dynaconf {version}")
    for row in (("what", "floor", "measured", "ratio / bar"), *rows):
        print(f"{row[0]:<52} {row[1]:>14} {row[2]:>14} {row[3]:>22}")


class Bench:
    """The measurements on one server."""

    def __init__(self, server: EtcdServer, folder: str) -> None:
        self._server = server
        self._folder = folder

    def _settings(self, name: str, **options: object) -> Dynaconf:
        etcd = {"endpoints": [self._server.endpoint], "prefix": "/bench", "name": name}
        return Dynaconf(
            root_path=self._folder,
            settings_files=["settings.toml"],
            loaders=LOADERS,
            ETCD_FOR_DYNACONF=etcd,
            **options,
        )

    def _plain(self, **options: object) -> Dynaconf:
        return Dynaconf(
            root_path=self._folder,
            settings_files=["settings.toml"],
            loaders=["dynaconf.loaders.env_loader"],
            **options,
        )

    def change_to_value(self, rounds: int) -> tuple[str, str, str, str]:
        """A change in etcd until the settings show it; floor: raw watch + one construction."""
        validators = [Validator("table0.name", must_exist=True), Validator("n", gte=0, default=0)]
        with Client(Config([self._server.endpoint], prefix="/bench")) as client:
            source = client.config_source("latency")
            source.save({f"table{i // 10}.key{i % 10}": i for i in range(100)} | {"n": 0})
            settings = self._settings("latency", validators=list(validators))
            settings.get("n")
            inner = internals.unwrap(settings)
            swapped = threading.Event()
            arrived: list[float] = []
            actual = internals.swap

            def swap(old: object, new: object) -> None:
                actual(old, new)  # type: ignore[arg-type]
                arrived.append(time.perf_counter())
                swapped.set()

            live.internals.swap = swap  # type: ignore[attr-defined]
            number = 0
            floors: list[float] = []
            measured: list[float] = []
            raw_seen = threading.Event()
            raw_at: list[float] = []

            def on_raw(_: object) -> None:
                raw_at.append(time.perf_counter())
                raw_seen.set()

            watch_id = client.raw.add_watch_callback("/bench/raw", on_raw)
            time.sleep(0.3)
            try:
                for _ in range(rounds):
                    waits, raws, builds = [], [], []
                    for _ in range(CHANGES_PER_ROUND):
                        number += 1
                        swapped.clear()
                        began = time.perf_counter()
                        source.update({"n": number})
                        swapped.wait(10)
                        waits.append(arrived[-1] - began)
                        raw_seen.clear()
                        began = time.perf_counter()
                        client.raw.put("/bench/raw", str(number))
                        raw_seen.wait(10)
                        raws.append(raw_at[-1] - began)
                        began = time.perf_counter()
                        self._plain(validators=list(validators)).get("n")
                        builds.append(time.perf_counter() - began)
                    floors.append(statistics.median(raws) + statistics.median(builds))
                    measured.append(statistics.median(waits))
            finally:
                live.internals.swap = actual  # type: ignore[attr-defined]
                client.raw.cancel_watch(watch_id)
                dynaconf_etcd.close(inner)
        ratio = statistics.median(m / f for m, f in zip(measured, floors, strict=True))
        return (
            "change in etcd -> value in settings, p50",
            _ms(statistics.median(floors)),
            _ms(statistics.median(measured)),
            f"{ratio:.2f} / 1.3",
        )

    def rebuild(self, rounds: int) -> tuple[str, str, str, str]:
        """Rebuild with 10 000 leaves in tables of 100."""
        with Client(Config([self._server.endpoint], prefix="/bench")) as client:
            client.config_source("large").save(
                {f"table{i // 100}.key{i % 100}": f"value {i}" for i in range(10_000)}
            )
        settings = self._settings("large")
        assert settings.TABLE7.key3 == "value 703"
        inner = internals.unwrap(settings)
        known = live.find(inner)
        assert known is not None
        took = []
        plain = []
        place, entries = known.accepted.place, dict(known.accepted.view.entries)
        key = place.layer_prefix("") + b"table7.key3"
        for number in range(rounds * 3):
            entries[key] = dataclasses.replace(entries[key], value=b"changed %d" % number)
            view = View(known.accepted.number + number, dict(entries))
            began = time.perf_counter()
            revision = Revision.decode(place, view, known.feed.decoder)
            new = known.build(inner, revision)
            took.append(time.perf_counter() - began)
            assert new.TABLE7.key3 == f"changed {number}"
            began = time.perf_counter()
            self._plain().get("table0")
            plain.append(time.perf_counter() - began)
        dynaconf_etcd.close(settings)
        return (
            "decode and rebuild, 1 of 10 000 leaves changed",
            _ms(statistics.median(plain)),
            _ms(statistics.median(took)),
            "bar 50 ms on 3.3",
        )

    def reads(self, rounds: int) -> list[tuple[str, str, str, str]]:
        """Reads of live settings against the same settings without etcd, after a swap."""
        with Client(Config([self._server.endpoint], prefix="/bench")) as client:
            source = client.config_source("reads")
            source.save({"server.port": 1, "n": 1})
            settings = self._settings("reads")
            assert settings.N == 1
            source.update({"n": 2})
            eventually(lambda: settings.N == 2)
        plain = self._plain(server={"port": 1}, n=2)
        assert plain.N == 2
        cases: dict[str, Callable[[Dynaconf], object]] = {
            "settings.N": lambda s: s.N,
            'settings["N"]': lambda s: s["N"],
            'settings.get("n")': lambda s: s.get("n"),
            'settings.get("server.port")': lambda s: s.get("server.port"),
            "settings.SERVER.port": lambda s: s.SERVER.port,
        }
        rows = []
        for name, read in cases.items():
            pairs = []
            # Many short rounds: a read takes less time than the machine's own moods.
            for _ in range(max(rounds, 25)):
                pairs.append((_per_call(read, plain), _per_call(read, settings)))
            ratio = statistics.median(live_ns / floor for floor, live_ns in pairs)
            floor = statistics.median(pair[0] for pair in pairs)
            measured = statistics.median(pair[1] for pair in pairs)
            rows.append((f"read {name}", _ns(floor), _ns(measured), f"{ratio:.2f} / 1.05"))
        dynaconf_etcd.close(settings)
        return rows


def _per_call(read: Callable[[Dynaconf], object], settings: Dynaconf, calls: int = 3000) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(calls):
            read(settings)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _ns(seconds: float) -> str:
    return f"{seconds * 1e9:.0f} ns"


if __name__ == "__main__":
    main()
