"""Run by ``test_stress``: eight readers of live settings while another process updates them.

Arguments: ``plain`` or ``django``, the endpoint, the prefix, the number of updates. Prints one JSON
object: how many reads, how many of each fault, and how many different values were seen.
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


def main() -> None:
    kind, endpoint, prefix, updates = sys.argv[1:5]
    last = int(updates)
    etcd = {"endpoints": [endpoint], "prefix": prefix, "name": "app"}
    folder = Path(tempfile.mkdtemp())
    (folder / "settings.toml").write_text("over = 'file'\n[pair]\nc = 'file'\n")
    readers = _plain(folder, etcd) if kind == "plain" else _django(folder, etcd)
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    stop = threading.Event()
    # More switches find more faults; and readers that only spin would starve the watch itself: with
    # the usual 5 ms, each message from etcd waits its turn behind eight threads.
    sys.setswitchinterval(0.0005)
    threads = [
        threading.Thread(target=_read, args=(read, stop, counts, seen, last)) for read in readers
    ]
    for thread in threads:
        thread.start()
    writer = subprocess.Popen([sys.executable, "-c", WRITER, endpoint, prefix, updates])
    assert writer.wait(240) == 0
    deadline = time.monotonic() + 60
    while any(read()[0] != last for read in readers) and time.monotonic() < deadline:
        time.sleep(0.05)
    final = [read()[0] for read in readers]
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"counts": counts, "different": len(seen), "final": final}))
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
