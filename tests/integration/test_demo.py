"""``demo``, as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from etcd_core.testing import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform == "win32", reason="stops by signals"),
]

MARK = "ETCD_DEMO_TEST"
STEPS = [
    "start a real etcd",
    "write a configuration",
    "start a Flask and a Django server",
    "find both in the registry",
    "change a setting in etcd",
    "run a @leader_only task on 3 processes",
    "kill -9 the leader",
    "contend for a lock from 3 processes",
    "restart etcd under all of it",
    "stop the servers",
]
LINE = re.compile(r" ?(\d+)\. +(\d+\.\d\d) s  ([^:]+): (.+)")


@contextmanager
def demo(folder: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo; whatever it starts is known by a mark in its environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    env |= {MARK: str(folder), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "etcd_examples.demo", *args],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            for each in started_by_demo(folder):
                each.kill()


def started_by_demo(folder: Path) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        try:
            if each.status() != psutil.STATUS_ZOMBIE and each.environ().get(MARK) == str(folder):
                found.append(each)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def expect_nothing_left(folder: Path) -> None:
    eventually(lambda: not started_by_demo(folder), message="no process is left")
    eventually(lambda: not list(folder.iterdir()), message="no file is left")


def test_every_step_is_seen_and_keep_runs_until_ctrl_c(tmp_path: Path) -> None:
    with demo(tmp_path, "--keep") as process:
        kept = lines_until(process, "  Ctrl-C stops everything")
        shown = "".join(kept)
        urls = re.findall(r"\((?:Flask|Django)\) +(http://127\.0\.0\.1:\d+/)", shown)
        assert len(urls) == 2, shown
        for url in urls:
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert b"hello after the restart" in answer.read()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        *steps, last = [line for line in (shown + output).splitlines() if not is_hint(line)]
        matches = [LINE.fullmatch(step) for step in steps]
        assert all(matches), steps
        seen = [match.groups() for match in matches if match is not None]
        assert [number for number, *_ in seen] == [str(n + 1) for n in range(len(STEPS))]
        assert [title for _, _, title, _ in seen] == STEPS
        total = re.fullmatch(r"every step was seen to happen, in (\d+\.\d) s", last)
        assert total is not None, output
        # Alone it takes less than half of the promised 30 s; here it runs beside other tests.
        assert float(total[1]) < 60, output
        assert sum(float(seconds) for _, seconds, _, _ in seen) <= float(total[1]) + 0.2
        expect_nothing_left(tmp_path)


def test_it_ends_by_itself(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        output, _ = process.communicate(timeout=150)
        assert process.returncode == 0, output
        assert f"{len(STEPS):>2}. " in output
        expect_nothing_left(tmp_path)


def is_hint(line: str) -> bool:
    """Tell whether ``--keep`` prints the line to say what to try."""
    return not line or (line.startswith("  ") and not LINE.fullmatch(line))


def lines_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """Return the lines up to the one that begins with ``text``."""
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or not lines[-1].startswith(text):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    return lines


@pytest.mark.parametrize(
    # After this step, that is amid the next one: all servers run, or they are being started.
    ("number", "step", "processes"),
    [
        pytest.param(signal.SIGINT, " 3.", 4, id="SIGINT"),
        pytest.param(signal.SIGTERM, " 2.", 2, id="SIGTERM"),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(
    tmp_path: Path, number: int, step: str, processes: int
) -> None:
    with demo(tmp_path) as process:
        lines_until(process, step)
        eventually(lambda: len(started_by_demo(tmp_path)) >= processes)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert "interrupted; everything it started is stopped" in output
        assert "Traceback" not in output
        expect_nothing_left(tmp_path)


def test_a_step_that_fails_fails_the_demo(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        lines_until(process, " 3.")
        (office,) = (each for each in started_by_demo(tmp_path) if "runserver" in each.cmdline())
        office.kill()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        assert "NOT SEEN" in output
        assert "FAILED" in output
        assert "every step" not in output
        expect_nothing_left(tmp_path)
