"""Has the process tell on its output which threads it starts, where the test asks for that."""

import os
import threading

_start = threading.Thread.start


def _start_and_tell(self: threading.Thread) -> None:
    os.write(1, f"starts the thread {self.name}\n".encode())
    _start(self)


if "TEST_TELL_THREADS" in os.environ:
    threading.Thread.start = _start_and_tell  # type: ignore[method-assign]
