"""A headless Chromium for tests: one process, one page, driven in the calling thread.

Spoken to in the DevTools protocol over a pair of pipes, the way browsers offer to programs that
start them. That needs no port, no driver binary and no library: what a page test wants is a dozen
commands. And the browser ends when its pipe does, also where the test run is killed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PATIENCE = 60.0

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--password-store=basic",
    "--remote-debugging-pipe",
)
# The browser reads its commands from descriptor 3 and answers on 4.
_ON_3_AND_4 = 'exec "$@" 3<&"$COMMANDS" 4>&"$ANSWERS"'


def find_chromium() -> str | None:
    """Return the path of an installed Chromium."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class BrowserError(AssertionError):
    """The page or the browser did not do what was asked."""


class Browser:
    """One page in a fresh profile. Use it as a context manager; not thread-safe.

    Args:
        profile: An empty folder for the profile and the log.
        executable: Which browser; see :func:`find_chromium`.

    Attributes:
        dialogs: Texts of the dialogs that pages opened; each is dismissed.
        complaints: Script errors, failed requests and refusals of the content security policy.
    """

    def __init__(self, profile: Path, executable: str) -> None:
        self.dialogs: list[str] = []
        self.complaints: list[str] = []
        self._next_id = 0
        self._buffer = b""
        self._loads = 0
        self._session = ""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # Above 9, so that neither is overwritten while the shell lays them on 3 and 4.
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers)]
        os.close(commands)
        os.close(answers)
        with (profile / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", _ON_3_AND_4, "browser", executable, *_FLAGS,
                 f"--user-data-dir={profile / 'profile'}", "about:blank"],
                env={**os.environ, "COMMANDS": str(given[0]), "ANSWERS": str(given[1])},
                pass_fds=given, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        for fd in given:
            os.close(fd)
        self._attach()

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and the processes it started."""
        with suppress(OSError, BrowserError):
            self._send("Browser.close", {}, session="")
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        # The group is ours: it was started as a session of its own.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        os.close(self._commands)
        os.close(self._answers)

    # -- pages ---------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to ``url`` and wait until the page is loaded."""
        with self.loading():
            answer = self.call("Page.navigate", url=url)
            if "errorText" in answer:
                raise BrowserError(f"{url}: {answer['errorText']}")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait at the end of the block until a page is loaded that the block asked for."""
        before = self._loads
        yield
        self._pump(lambda: self._loads > before, "the page is loaded")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; waits for a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.run(script)):
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {seconds:g} s: {script}\n{self.text()}")
            time.sleep(0.05)
        return value

    def text(self) -> str:
        """Return what the page shows as text."""
        text: str = self.run("document.body.innerText")
        return text

    def source(self) -> str:
        """Return the document as it is now."""
        source: str = self.run("document.documentElement.outerHTML")
        return source

    def fill(self, selector: str, value: str) -> None:
        """Type into an input, as a user would."""
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=value)

    def click(self, selector: str) -> None:
        """Click the first element that matches."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def press(self, key: str) -> None:
        """Press and release a key such as ``Tab``."""
        for kind in ("keyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13, " ": 32}[key]
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                **({"text": "\r" if key == "Enter" else " "} if kind == "keyDown" and key != "Tab"
                   else {}),
            )  # fmt: skip

    def show(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window and the colours the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Save a picture of the whole page, or of what the window shows."""
        answer = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def forget_cookies(self) -> None:
        """Log out behind the page's back."""
        self.call("Network.clearBrowserCookies")

    def hurry(self, factor: float) -> None:
        """Let timers of the pages opened from now on run out sooner."""
        self.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source=f"""{{
                const plain = setTimeout;
                window.setTimeout = (run, delay, ...rest) => plain(run, delay / {factor}, ...rest);
            }}""",
        )

    # -- the protocol --------------------------------------------------------------------------

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command to the page and return its answer."""
        return self._send(method, parameters, session=self._session)

    def _attach(self) -> None:
        targets = self._send("Target.getTargets", {}, session="")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        attached = self._send(
            "Target.attachToTarget", {"targetId": page, "flatten": True}, session=""
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _send(self, method: str, parameters: dict[str, object], session: str) -> dict[str, Any]:
        self._next_id += 1
        message: dict[str, object] = {"id": self._next_id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        wanted, answers = self._next_id, []

        def answered() -> bool:
            return bool(answers)

        self._pump(answered, method, lambda got: answers.append(got) if got["id"] == wanted else 0)
        if "error" in answers[0]:
            raise BrowserError(f"{method}: {answers[0]['error']}")
        result: dict[str, Any] = answers[0]["result"]
        return result

    def _pump(
        self,
        done: Callable[[], bool],
        what: str,
        on_answer: Callable[[dict[str, Any]], object] = lambda got: None,
    ) -> None:
        """Take in messages until ``done``."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            for raw in self._receive(deadline, what):
                message = json.loads(raw)
                if "id" in message:
                    on_answer(message)
                else:
                    self._on_event(message["method"], message["params"])

    def _receive(self, deadline: float, what: str) -> list[bytes]:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._answers], [], [], left)[0]:
            raise BrowserError(f"the browser did not answer: {what}")
        received = os.read(self._answers, 1 << 20)
        if not received:
            raise BrowserError(f"the browser has ended: {what}")
        *whole, self._buffer = (self._buffer + received).split(b"\0")
        return whole

    def _on_event(self, method: str, event: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Page.javascriptDialogOpening":
            self.dialogs.append(event["message"])
            os.write(
                self._commands,
                json.dumps(
                    {"id": 0, "method": "Page.handleJavaScriptDialog",
                     "params": {"accept": False}, "sessionId": self._session}
                ).encode() + b"\0",
            )  # fmt: skip
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.complaints.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
