"""mypy --strict accepts the public API as users write it, and refuses what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is absent")

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_the_public_api_is_typed() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    done = subprocess.run(
        [*command, "tests/typing/api.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
