"""Users of the guards keep the types of their functions under ``mypy --strict``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is absent")

USER = """
from __future__ import annotations

import asyncio
from typing import Optional, Union

from etcd_core import Client, Term, checkpoint, current_term, exclusive, leader_only
from typing_extensions import assert_type


@leader_only("job")
def skipping(x: int) -> str:
    return str(x)


@exclusive("job", default=3)
def with_default(x: int, *, y: bool = False) -> str:
    return str(x)


@leader_only("job", otherwise="raise", on_lost="raise")
def strict(x: int) -> str:
    assert_type(current_term(), Term)
    assert_type(checkpoint(), bool)
    return str(x)


@exclusive("job", otherwise="wait", wait=5)
async def waiting(x: int) -> str:
    return str(x)


@leader_only("job")
async def skipping_async(x: int) -> str:
    return str(x)


class Shop:
    @leader_only("job")
    def method(self, x: int) -> str:
        return str(x)

    @classmethod
    @exclusive("job")
    def make(cls, x: int) -> Shop:
        return cls()

    @leader_only("job", otherwise="raise")
    @classmethod
    def other(cls, x: int) -> Shop:
        return cls()

    @staticmethod
    @leader_only("job")
    def static(x: int) -> str:
        return str(x)

    @leader_only("job", on_lost="cancel")
    async def coroutine(self, x: int) -> str:
        return str(x)


async def use_async() -> None:
    assert_type(await waiting(1), str)
    assert_type(await skipping_async(1), Optional[str])
    assert_type(await asyncio.create_task(skipping_async(1)), Optional[str])
    assert_type(await Shop().coroutine(1), Optional[str])
    async with exclusive("job") as term:
        assert_type(term, Term)


def use(client: Client) -> None:
    assert_type(skipping(1), Optional[str])
    assert_type(with_default(1, y=True), Union[str, int])
    assert_type(strict(1), str)
    assert_type(Shop().method(1), Optional[str])
    assert_type(Shop.make(1), Optional[Shop])
    assert_type(Shop.other(1), Shop)
    assert_type(Shop.static(1), Optional[str])
    asyncio.run(use_async())
    with leader_only("job", client=client) as term:
        assert_type(term.token, int)
    leader_only("job", client=lambda: client)


def wrong() -> None:
    skipping("one")  # wrong: an int
    with_default(1, True)  # wrong: a keyword
    strict()  # wrong: an argument is missing
    leader_only("job", otherwise="raise", default=1)  # wrong: it never skips
    leader_only("job", otherwise="ignore")  # wrong: no such way
    exclusive("job", wait=1)  # wrong: needs otherwise="wait"
    exclusive("job", identity=3)  # wrong: no text
    leader_only("job", client=3)  # wrong: no client
"""


@pytest.mark.timeout(240)
def test_code_of_a_user(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER)
    options = ["--strict", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    refused = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wrong = {number for number, line in enumerate(USER.splitlines(), 1) if "# wrong" in line}
    assert refused == wrong, done.stdout + done.stderr
