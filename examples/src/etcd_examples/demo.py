"""``uv run demo``: what the four packages do, on a real etcd with real server processes.

Exits with 0 only if each step was seen to happen. Ctrl-C ends everything it started; ``--keep``
leaves it running until then. Everything listens on 127.0.0.1 and lives in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from etcd_core import Client, Lock, ServiceEvent
from etcd_core.testing import EtcdNotFound, EtcdServer, EtcdStartFailed, eventually, find_binaries

from .demo_apps import COUNTER, ROUNDS
from .programs import APPS, Program, Programs, free_port

PREFIX = "/demo"
FLEET = 3
PATIENCE = 30.0


class Failed(Exception):
    """A step was not seen to happen."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="demo", description="Show etcd-core and its three adapters on a real etcd."
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave it running until Ctrl-C, and say what to try"
    )
    options = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt_once)
    # That etcd is away for a moment is what step 9 is about; the lines of the steps tell it.
    logging.getLogger("etcd_core").addHandler(logging.NullHandler())
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            Demo(stack).run(keep=options.keep)
    except (Failed, AssertionError, EtcdNotFound, EtcdStartFailed) as exc:
        print(f"FAILED: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything it started is stopped")
        return 130
    print(f"every step was seen to happen, in {time.monotonic() - began:.1f} s")
    return 0


def _interrupt_once(number: int, frame: object) -> None:
    # An impatient second Ctrl-C must not leave servers behind; stopping them is bounded.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


class Demo:
    """The steps. What they start, ``stack`` ends, in the reverse order.

    Args:
        stack: Entered by the caller.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._number = 0
        with self._step("start a real etcd") as seen:
            self.etcd = stack.enter_context(EtcdServer())
            seen(f"etcd {self.etcd.version} answers at {self.etcd.endpoint}")
        self.programs = stack.enter_context(Programs(DEMO_ETCD=self.etcd.endpoint))
        self.client = stack.enter_context(Client(endpoints=[self.etcd.endpoint], prefix=PREFIX))
        self.config = self.client.config_source("shop")

    def run(self, *, keep: bool) -> None:
        """Run all steps; raises when one was not seen to happen."""
        self._write_configuration()
        self._start_servers()
        self._find_them_in_the_registry()
        self._change_a_setting("hello from etcd, changed")
        self._elect_a_leader()
        self._kill_the_leader()
        self._contend_for_a_lock()
        self._restart_etcd()
        if keep:
            self._wait_for_ctrl_c()
        self._stop_servers()

    # -- the steps -----------------------------------------------------------------------------

    def _write_configuration(self) -> None:
        with self._step("write a configuration") as seen:
            revision = self.config.save({"greeting": "hello from etcd"})
            loaded = self.config.load()
            expect(dict(loaded) == {"greeting": "hello from etcd"}, f"etcd has {dict(loaded)}")
            seen(f"{PREFIX}/config/shop/greeting, revision {revision}")

    def _start_servers(self) -> None:
        with self._step("start a Flask and a Django server") as seen:
            shop, office = free_port(), free_port()
            self.shop = self.programs.start(
                "shop", "gunicorn", "--bind", f"127.0.0.1:{shop}", f"{APPS}.shop:app", port=shop
            )
            self.office = self.programs.start(
                "office", "django", "runserver", "--noreload", str(office), port=office
            )
            answer = self._ask(self.shop, lambda page: True)
            expect(answer["greeting"] == "hello from etcd", f"the shop says {answer}")
            expect(answer["currency"] == "EUR", f"the shop says {answer}")
            seen(
                f"gunicorn pid {self.shop.pid} says {answer['greeting']!r} (etcd) in "
                f"{answer['currency']} (file), runserver pid {self.office.pid}"
            )

    def _find_them_in_the_registry(self) -> None:
        with self._step("find both in the registry") as seen:
            self._await(self._both_are_registered, "both in the registry")
            says = self._ask(self.office, lambda page: True)["says"]
            expect(says == "hello from etcd", f"the office got {says!r} from the shop")
            seen(f"shop {self.shop.address}, office {self.office.address}; office asked shop")

    def _change_a_setting(self, greeting: str) -> None:
        with self._step("change a setting in etcd") as seen:
            before = self._ask(self.shop, lambda page: True)["greeting"]
            self.config.update({"greeting": greeting})
            delay = self._time_until_it_says(greeting)
            seen(f"HTTP said {before!r}, then {greeting!r} after {delay * 1000:.0f} ms")

    def _elect_a_leader(self) -> None:
        with self._step(f"run a @leader_only task on {FLEET} processes") as seen:
            self.fleet = [
                self.programs.start(f"worker-{number}", f"{APPS}.worker", "task")
                for number in range(FLEET)
            ]
            self._await(lambda: all(len(p.said()) >= 5 for p in self.fleet), "five calls each")
            leader = self._only_leader()
            others = ", ".join(str(each.pid) for each in self.fleet if each is not leader)
            token = leader.tokens()[-1]
            seen(f"pid {leader.pid} runs it under token {token}, {others} skip")

    def _kill_the_leader(self) -> None:
        with self._step("kill -9 the leader") as seen:
            old = self._only_leader()
            others = [each for each in self.fleet if each is not old]
            began = time.monotonic()
            old.kill()
            token = old.tokens()[-1]
            self._await(lambda: any(p.tokens() for p in others), "another process leads")
            delay = time.monotonic() - began
            self.fleet = others
            new = self._only_leader()
            expect(new.tokens()[0] > token, f"token {new.tokens()[0]} does not exceed {token}")
            seen(f"pid {new.pid} took over after {delay:.1f} s, token {new.tokens()[0]} > {token}")

    def _contend_for_a_lock(self) -> None:
        with self._step(f"contend for a lock from {FLEET} processes") as seen:
            counters = [
                self.programs.start(f"counter-{number}", f"{APPS}.worker", "count")
                for number in range(FLEET)
            ]
            self._await(lambda: all(each.done() for each in counters), "all have counted")
            counted, _ = self.client.raw.get(COUNTER)
            total = FLEET * ROUNDS
            expect(counted == str(total).encode(), f"counted {counted!r} of {total}")
            tokens = [token for each in counters for token in each.tokens()]
            expect(len(set(tokens)) == total, "two processes had the lock at once")
            seen(f"{total} additions under it, none lost, {total} different tokens")

    def _restart_etcd(self) -> None:
        with self._step("restart etcd under all of it") as seen:
            events: list[ServiceEvent] = []
            with (
                self.client.watch_service("shop", events.append),
                self.client.watch_service("office", events.append),
                self.client.lock("held-over-the-restart", timeout=5) as lock,
            ):
                self._await(lambda: len(events) == 2, "both instances")
                self.etcd.kill()
                self.etcd.start()
                self._check_all_is_there(lock)
                expect(len(events) == 2, f"instances came or went: {events[2:]}")
            delay = self._time_until_it_says(self._update("hello after the restart"))
            seen(
                "registrations, leader, lock and configuration are as before; the next change "
                f"arrived after {delay * 1000:.0f} ms"
            )

    def _check_all_is_there(self, lock: Lock) -> None:
        self._await(self._both_are_registered, "both in the registry")
        greeting = self.config.load()["greeting"]
        expect(greeting == "hello from etcd, changed", f"the configuration has {greeting!r}")
        kept, _ = self.client.raw.transaction(compare=[lock.guard()], success=[], failure=[])
        expect(kept and lock.held, "the lock was lost")
        leader = self._only_leader()
        runs = len(leader.tokens())
        self._await(lambda: len(leader.tokens()) > runs, "the leader goes on")
        expect(len(set(leader.tokens())) == 1, f"the leader changed: {set(leader.tokens())}")

    def _wait_for_ctrl_c(self) -> None:
        print(self._what_to_try(), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        print()

    def _what_to_try(self) -> str:
        python = os.path.relpath(sys.executable)
        etcdctl = os.path.relpath(find_binaries().etcdctl or "etcdctl")
        etcd = self.etcd.endpoint
        return f"""
    shop (Flask)     http://{self.shop.address}/
    office (Django)  http://{self.office.address}/
    etcd             {etcd}

  change the shop's greeting, then look at its page again:
    {python} -c "from etcd_core import Client; \\
      Client(endpoints=['{etcd}'], prefix='{PREFIX}') \\
      .config_source('shop').update({{'greeting': 'good evening'}})"
  who is registered, who leads, what is configured (values of all keys):
    {etcdctl} --endpoints {etcd} get --prefix {PREFIX}/
  kill a server and see its entry go after its TTL of 15 s: kill -9 {self.office.pid}

  Ctrl-C stops everything."""

    def _stop_servers(self) -> None:
        with self._step("stop the servers") as seen:
            for each in (self.shop, self.office):
                each.terminate()
            began = time.monotonic()
            self._await(self._registry_is_empty, "the registry is empty")
            delay = time.monotonic() - began
            for each in (self.shop, self.office):
                each.wait(PATIENCE)
            seen(f"the registry was empty {delay * 1000:.0f} ms after SIGTERM")

    # -- what they look at ---------------------------------------------------------------------

    def _both_are_registered(self) -> bool:
        return all(
            [each.address for each in self.client.discover(each_name)] == [each.address]
            for each_name, each in (("shop", self.shop), ("office", self.office))
        )

    def _registry_is_empty(self) -> bool:
        return not self.client.discover("shop") and not self.client.discover("office")

    def _ask(self, server: Program, wanted: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        pages: list[dict[str, str]] = []

        def asked() -> bool:
            pages.append(server.get())
            return wanted(pages[-1])

        self._await(asked, f"{server.name} answers")
        return pages[-1]

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until it holds; fail at once when a program ended by an error."""
        eventually(lambda: self.programs.failures() or condition(), PATIENCE, 0.005, message=what)
        expect(not self.programs.failures(), f"{what}: {self.programs.failures()}")

    def _update(self, greeting: str) -> str:
        self.config.update({"greeting": greeting})
        return greeting

    def _time_until_it_says(self, greeting: str) -> float:
        began = time.monotonic()
        self._ask(self.shop, lambda page: page["greeting"] == greeting)
        return time.monotonic() - began

    def _only_leader(self) -> Program:
        leaders = [each for each in self.fleet if each.tokens()]
        expect(len(leaders) == 1, f"{len(leaders)} processes ran the task")
        return leaders[0]

    @contextmanager
    def _step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Print one line with what was seen and the time it took."""
        self._number += 1
        said: list[str] = []
        began = time.monotonic()
        try:
            yield said.append
        except (Exception, KeyboardInterrupt):
            seconds = time.monotonic() - began
            print(f"{self._number:2}. {seconds:5.2f} s  {title}: NOT SEEN", flush=True)
            raise
        seconds = time.monotonic() - began
        print(f"{self._number:2}. {seconds:5.2f} s  {title}: {said[0]}", flush=True)


def expect(condition: bool, otherwise: str) -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise Failed(otherwise)


if __name__ == "__main__":
    sys.exit(main())
