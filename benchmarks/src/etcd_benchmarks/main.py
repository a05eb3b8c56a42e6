"""The script ``bench``: starts an etcd, measures, prints the table. Main thread only."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from etcd_core.testing import EtcdServer

from . import core_rows, dynaconf_rows, handover, startup
from .core_rows import Bench
from .measure import Effort, Row, show

Group = Callable[[Bench], list[Row]]

_GROUPS: dict[str, Group] = {
    "locks": core_rows.locks,
    "handover": handover.handover,
    "registration": core_rows.registration,
    "watches": core_rows.watches,
    "configuration": core_rows.configuration,
    "reads": core_rows.reads,
    "dynaconf": dynaconf_rows.dynaconf,
    "startup": startup.startup,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what was asked for; exit with 1 if a bar is missed."""
    options = _parser().parse_args(arguments)
    groups = _chosen(options)
    began = time.monotonic()
    rows: list[Row] = []
    with EtcdServer() as server:
        bench = Bench(server.endpoint, Effort.choose(options.quick))
        for name, group in groups.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += group(bench)
        machine = _machine(server.version)
    if options.json:
        print(json.dumps({"machine": machine, "rows": [row.as_json() for row in rows]}, indent=1))
    else:
        _print_table(rows, machine, time.monotonic() - began)
    sys.exit(any(row.passed is False for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--scale", action="store_true", help="how it grows up to 10 000")
    parser.add_argument("--peers", action="store_true", help="the same work with other clients")
    parser.add_argument("--only", default="", help="groups whose name contains this")
    return parser


def _chosen(options: argparse.Namespace) -> dict[str, Group]:
    groups = dict(_GROUPS)
    if options.scale:
        from .scale import scale

        groups["scale"] = scale
    if options.peers:
        from .peers import peers

        groups["peers"] = peers
    return {name: group for name, group in groups.items() if options.only in name}


def _machine(etcd: str) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "PyYAML"))
    load = os.getloadavg()[0]
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores (load {load:.1f}),"
        f" Python {platform.python_version()}, etcd {etcd}, {versions}"
    )


def _print_table(rows: Sequence[Row], machine: str, took: float) -> None:
    print(machine)
    columns = ("operation", "floor", "floor time", "time", "ratio", "requests", "bar", "")
    table = [columns, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line, row in zip(table, [None, *rows], strict=True):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
        for note in row.notes if row else ():
            print(f"    {note}")
    short = [row.name for row in rows if row.passed is False]
    print(f"{len(rows)} rows in {took:.0f} s; short of the bar: {', '.join(short) or 'none'}")


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    verdict = {True: "pass", False: "SHORT", None: ""}[row.passed]
    return (
        row.name,
        row.floor_name,
        show(row.floor, row.unit),
        show(row.ours, row.unit),
        ratio,
        row.requests,
        row.bar,
        verdict,
    )
