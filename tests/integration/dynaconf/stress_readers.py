"""Run by ``test_stress``: eight readers of live settings while another process updates them.

Arguments: ``plain``, ``django``, ``blocks`` or ``block``, the endpoint, the prefix, the number of
updates. With ``blocks`` several threads choose environments meanwhile, with ``block`` one does.
Prints one JSON object: how many reads, how many of each fault, and how many different values were
seen.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

LOADERS = ["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"]
WRITER = """
import sys, time
from etcd_core import Client, Config
client = Client(Config([sys.argv[1]], prefix=sys.argv[2]))
source = client.config_source("app")
for n in range(1, int(sys.argv[3]) + 1):
    values = {"pair.a": n, "pair.b": n, "top": n}
    # On odd numbers the key is gone, and the file's value shows.
    source.update(values | ({"over": n} if n % 2 == 0 else {}), delete=["over"])
client.close()
"""
LAYERS = {"app": "default", "app.development": "development", "app.a": "a", "app.b": "b"}
WRITER_OF_LAYERS = """
import sys, time
from etcd_core import Client, Config
client = Client(Config([sys.argv[1]], prefix=sys.argv[2]))
put = client.raw.transactions.put
for n in range(1, int(sys.argv[3]) + 1):
    values = {"pair.a": n, "pair.b": n, "top": n}
    puts = [
        put(f"{sys.argv[2]}/config/{layer}/{path}", str(value))
        for layer in sys.argv[4:]
        for path, value in values.items()
    ]
    client.raw.transaction(compare=[], success=puts, failure=[])
    time.sleep(0.005)
client.close()
"""


def main() -> None:
    kind, endpoint, prefix, updates = sys.argv[1:5]
    last = int(updates)
    etcd = {"endpoints": [endpoint], "prefix": prefix, "name": "app"}
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.toml").write_text("over = 'file'\n[pair]\nc = 'file'\n")
    make = {"plain": _plain, "django": _django}.get(kind, _environments)
    readers = make(folder, etcd)
    switchers = _switchers(kind)
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    stop = threading.Event()
    # More switches find more faults; and readers that only spin would starve the watch itself: with
    # the usual 5 ms, each message from etcd waits its turn behind eight threads.
    sys.setswitchinterval(0.0005)
    threads = [
        threading.Thread(target=_read, args=(read, stop, counts, seen, last), daemon=True)
        for read in readers
    ]
    chosen: Counter[str] = Counter()
    switching = threading.Event()
    changing = [
        threading.Thread(target=_switch, args=(each, switching, counts, chosen), daemon=True)
        for each in switchers
    ]
    for thread in threads + changing:
        thread.start()
    script, layers = (WRITER_OF_LAYERS, list(LAYERS)) if switchers else (WRITER, [])
    command = [sys.executable, "-c", script, endpoint, prefix, updates, *layers]
    assert subprocess.Popen(command).wait(240) == 0
    switching.set()
    for thread in changing:
        thread.join()
    deadline = time.monotonic() + 60
    while any(read()[0] != last for read in readers) and time.monotonic() < deadline:
        time.sleep(0.05)
    final = [read()[0] for read in readers]
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": counts, "different": len(seen), "final": final, "chosen": chosen}))
    sys.stdout.flush()
    os._exit(0)


Read = Callable[[], tuple[object, object, object, object]]


def _read(
    read: Read, stop: threading.Event, counts: Counter[str], seen: set[int], last: int
) -> None:
    reads = torn = wrong = backwards = raised = 0
    before = 0
    while not stop.is_set():
        reads += 1
        if reads % 20 == 0:
            time.sleep(0.001)
        try:
            a, b, c, over = read()
        except Exception:
            raised += 1
            continue
        if not isinstance(a, int) or a != b:
            torn += 1
            continue
        if c != "file" or not (over == "file" or isinstance(over, int)):
            wrong += 1
        if a < before:
            backwards += 1
        before = a
        seen.add(a)
    counts.update(reads=reads, torn=torn, wrong=wrong, backwards=backwards, raised=raised)


def _plain(folder: Path, etcd: dict[str, object]) -> list[Read]:
    from dynaconf import Dynaconf, FlaskDynaconf
    from flask import Flask

    settings = Dynaconf(
        root_path=str(folder),
        settings_files=["settings.toml"],
        loaders=LOADERS,
        ETCD_FOR_DYNACONF=etcd,
    )
    app = Flask("stress")
    FlaskDynaconf(app, dynaconf_instance=settings)
    return [
        *_readers(settings),
        *_readers(settings)[:2],
        lambda: _item(app.config),
        _dict(settings),
    ]


def _django(folder: Path, etcd: dict[str, object]) -> list[Read]:
    (folder / "stress_settings.py").write_text(
        "SECRET_KEY = 's'\nimport dynaconf\n"
        "settings = dynaconf.DjangoDynaconf(__name__, ENVIRONMENTS_FOR_DYNACONF=False,"
        f"LOADERS_FOR_DYNACONF={LOADERS!r}, ETCD_FOR_DYNACONF={etcd!r},"
        "SETTINGS_FILE_FOR_DYNACONF=['settings.toml'])\n"
    )
    sys.path.insert(0, str(folder))
    os.environ["DJANGO_SETTINGS_MODULE"] = "stress_settings"
    import django

    django.setup()
    from django.conf import settings

    return [*_readers(settings), *_readers(settings)]


SETTINGS: list[object] = []


def _environments(folder: Path, etcd: dict[str, object]) -> list[Read]:
    from dynaconf import Dynaconf

    (folder / "settings.toml").write_text(
        "[default]\nover = 'file'\nline = '@format {this.ENV}:{this.PAIR.a}:{this.PAIR.b}'\n"
        "nest.line = '@format {this.ENV}:{this.TOP}:{this.PAIR.b}'\n"
        + "".join(
            f"[{env}]\nenv = '{env}'\npair.c = 'file'\npair.d = '{env}'\n" for env in ENVIRONMENTS
        )
    )
    settings = Dynaconf(
        root_path=str(folder),
        settings_files=["settings.toml"],
        environments=True,
        loaders=LOADERS,
        ETCD_FOR_DYNACONF=etcd,
    )
    # Threads that are first to read each load an object of their own, and the last one stays.
    assert settings.ENV == "development"
    SETTINGS.append(settings)
    return [
        *_readers(settings),
        _dict(settings),
        lambda: _line(settings.LINE, "file"),
        lambda: _line(settings.NEST.line, settings.get("pair.c")),
        lambda: _line(settings.get("nest.line"), settings["PAIR"]["c"]),
    ]


ENVIRONMENTS = ("development", "a", "b")


def _line(line: str, c: object) -> tuple[object, object, object, object]:
    env, a, b = line.split(":")
    return int(a), int(b) if env in ENVIRONMENTS else env, c, "file"


Switch = Callable[[], str]


def _switchers(kind: str) -> list[Switch]:
    """Return what chooses environments, and tells a fault or nothing."""
    if not SETTINGS:
        return []
    settings = SETTINGS[0]

    def block(env: str, own: bool) -> Switch:
        def run() -> str:
            with settings.using_env(env):  # type: ignore[attr-defined]
                for _ in range(5):
                    time.sleep(0.001)
                    values = settings.as_dict()  # type: ignore[attr-defined]
                    if values["ENV"] != values["PAIR"]["d"] or (own and values["ENV"] != env):
                        return f"mixed {values['ENV']} {values['PAIR']} in {env}"
            if own and settings.ENV != "development":  # type: ignore[attr-defined]
                return "stuck"
            return ""

        return run

    def others() -> str:
        settings.reload()  # type: ignore[attr-defined]
        taken = settings.as_dict(env="b")  # type: ignore[attr-defined]
        return "" if taken["ENV"] in ENVIRONMENTS else "mixed"

    if kind == "block":
        return [block("a", own=True)]
    return [block("a", own=False), block("b", own=False), others]


def _switch(
    switch: Switch, stop: threading.Event, counts: Counter[str], chosen: Counter[str]
) -> None:
    while not stop.is_set():
        try:
            fault = switch()
        except Exception as exc:
            fault = f"raised {type(exc).__name__}"
        counts["switched"] += 1
        if fault:
            chosen[fault] += 1


def _readers(settings: object) -> list[Read]:
    def attribute() -> tuple[object, ...]:
        pair = settings.PAIR  # type: ignore[attr-defined]
        return pair["a"], pair["b"], pair["c"], settings.OVER  # type: ignore[attr-defined]

    def got() -> tuple[object, ...]:
        get = settings.get  # type: ignore[attr-defined]
        pair = get("pair")
        return pair["a"], pair["b"], pair["c"], get("over")

    def dotted() -> tuple[object, ...]:
        get = settings.get  # type: ignore[attr-defined]
        a = get("pair.a")
        return a, a, get("pair.c"), get("OVER")

    return [attribute, lambda: _item(settings), got, dotted]  # type: ignore[list-item]


def _item(settings: object) -> tuple[object, object, object, object]:
    pair = settings["PAIR"]  # type: ignore[index]
    return pair["a"], pair["b"], pair["c"], settings["OVER"]  # type: ignore[index]


def _dict(settings: object) -> Read:
    def read() -> tuple[object, object, object, object]:
        whole = settings.as_dict()  # type: ignore[attr-defined]
        same = whole["PAIR"]["a"] == whole["TOP"]
        return (
            whole["PAIR"]["a"],
            whole["TOP"] if not same else whole["PAIR"]["b"],
            "file",
            (whole["OVER"]),
        )

    return read


if __name__ == "__main__":
    main()
