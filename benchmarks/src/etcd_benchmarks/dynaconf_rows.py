"""The rows of dynaconf_etcd, measured by ``benchmarks/dynaconf_live.py``. Main thread.

That file also runs by itself; here its rows are read into the common table.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

from .core_rows import Bench
from .measure import Row

_PROGRAM = Path(__file__).parents[2] / "dynaconf_live.py"
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_REBUILD_SECONDS = 0.05


def dynaconf(bench: Bench) -> list[Row]:
    """Return change to value, rebuild, and reads."""
    program = _load()
    rounds = max(5, bench.effort.rounds - 2)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "settings.toml").write_text(program.FILE)
        # It asks its server for nothing but the endpoint.
        measured = program.Bench(bench, folder)
        found = [measured.change_to_value(rounds), measured.rebuild(rounds)]
        found += measured.reads(rounds)
    return [_row(*cells) for cells in found]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dynaconf_live", _PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(name: str, floor: str, ours: str, verdict: str) -> Row:
    row = Row(name, floor=_seconds(floor), ours=_seconds(ours))
    ratio, slash, limit = verdict.partition(" / ")
    if slash:
        row.floor_name = "raw watch + construction" if "change" in name else "without etcd"
        row.ratio, row.bar = float(ratio), f"<= {limit}x"
        row.check(row.ratio <= float(limit))
    else:
        row.floor_name, row.bar = "the file alone", verdict
        row.check(row.ours is not None and row.ours <= _REBUILD_SECONDS)
    return row


def _seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * _UNITS[unit]
