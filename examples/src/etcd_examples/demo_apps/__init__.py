"""The programs that the demo runs as processes of their own."""

from __future__ import annotations

from typing import Final

COUNTER: Final = "/demo/counter"
ROUNDS: Final = 10
