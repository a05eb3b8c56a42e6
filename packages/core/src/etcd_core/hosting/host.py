"""Registers a service exactly while its process serves. Owns the thread ``etcd-host``.

That thread finds the address, has the entry made, waits for the end and sees that the entry is
given up in time. It does no network I/O itself, so the time it takes to stop has a bound. Nothing
of gRPC is imported before the process is known to serve: it may be a parent that still forks.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

from blinker import Signal
from typing_extensions import Self

from .. import forking
from ..events import Event, fields
from ..presence import Presence, started_at
from . import listeners, process, running, signs, stopping
from .listeners import Listener
from .options import HostOptions
from .process import GunicornWorker, Role
from .readiness import Context, Readiness

if TYPE_CHECKING:
    from ..client import Client
    from ..engine import Relay
    from ..sharing import SharedRegistration

_log = logging.getLogger("etcd_core.hosting")

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_IMPORT_PATIENCE = 5.0
_SUPERVISOR_SECONDS = 1.0
_DRAIN_STEP = 0.1

_Command = Literal["stop", "drain", "pause", "resume", "look"]


class ServiceHost:
    """What one application has of etcd in its processes: the client and its registration.

    Safe to use from any thread. Making one does no I/O and starts no thread. After ``fork()`` the
    child is not registered; a gunicorn worker registers by itself.

    Args:
        options: What the application was configured with.
        may_serve: Asked when the process is found listening; False: it is not the service (a test's
            live server).
        ready_context: What the option READY is called in.
    """

    def __init__(
        self,
        options: HostOptions,
        may_serve: Callable[[], bool] = lambda: True,
        ready_context: Context = nullcontext,
    ) -> None:
        self.options = options
        self.may_serve = may_serve
        self.ready_context = ready_context
        self._held_out: bool | None = None
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._agent: _Agent | None = None
        self._armed = False
        self._awaits_sign = False
        self._followers: list[Relay] = []
        forking.track(self)

    @property
    def client(self) -> Client:
        """The client of this application, on this process's one channel for its config. No I/O."""
        with self._lock:
            if self._client is None or self._client.closed:
                from ..client import shared_client

                self._client = shared_client(self.options.config)
                self._client.announcer.follow(self._announced)
            return self._client

    @property
    def registration(self) -> SharedRegistration | None:
        """This process's part in the service's registry entry; None while there is none."""
        agent = self._agent
        return None if agent is None else agent.share

    @property
    def serving(self) -> bool:
        """Whether this process was found to serve, and does still. No I/O."""
        agent = self._agent
        return agent is not None and agent.serving

    def follow(self, relay: Relay) -> None:
        """Have ``relay(signal, sender, payload)`` called for every signal about this application.

        Those are the ones about its client and what was made by it, and about its registration,
        also where it shares that with another application of the process.
        """
        self._followers.append(relay)

    def arm(self, *, by_server: bool = False) -> None:
        """Register when this process turns out to serve. Idempotent; does no I/O.

        To be called where the framework builds its application, in whichever process that is. No
        thread is started before the process shows a sign that it serves.

        Args:
            by_server: Hardly anything but a server makes this very call, so that it is a sign
                where the process listens already.
        """
        if self.options.service_name is None or self.options.register is False:
            return
        with self._lock:
            if self._armed:
                return
            self._armed = True
        place = process.here()
        if place.role is Role.PLAIN:
            self._arm_plain(by_server)
        elif place.role is not Role.CELERY:
            running.defer(place, self.start)

    def _arm_plain(self, by_server: bool) -> None:
        if self.options.register is True:
            self.start()
        elif not process.runs_tests():
            # The sign may come in another thread, which cannot take the signal.
            stopping.claim_signals()
            self._awaits_sign = True
            signs.await_first(self._start_if_awaited)
            if by_server and (listeners.listening() or listeners.listens_on_unix()):
                signs.tell()

    def _start_if_awaited(self) -> None:
        with _agents_lock:
            # Deregistered since the sign was given, in another thread: it must not come back.
            agent = self._join_agent(None) if self._awaits_sign else None
        if agent is not None:
            agent.start()

    def _await_no_sign(self) -> None:
        self._awaits_sign = False
        signs.forget(self._start_if_awaited)

    def start(self, worker: GunicornWorker | None = None) -> None:
        """Begin to look for the address and register, in the background. Idempotent.

        Args:
            worker: The gunicorn worker this process is.
        """
        self._join_agent(worker).start()

    def register(self, address: str | None = None) -> None:
        """Register now, under a server that is not recognised. Does not block.

        Args:
            address: The advertised ``host:port``; None: the option, or the listening socket.
        """
        agent = self._join_agent(None)
        agent.given_address = address
        agent.forced = True
        agent.start()

    @property
    def awaits_request(self) -> bool:
        """Whether a request would tell more: that this process serves, or where."""
        return not self.serving and (signs.awaited() or not listeners.can_list())

    def note_request(self, name: str, port: str | int | None) -> None:
        """Take note that a server received a request. Does not block; any thread.

        Args:
            name: The server's name or address, as WSGI's ``SERVER_NAME``.
            port: Its port, as ``SERVER_PORT``; what is no number came through a unix socket.
        """
        if not self.awaits_request or process.in_test_client():
            return
        signs.tell()
        agent = self._agent
        if agent is not None and not listeners.can_list() and str(port).isdecimal():
            agent.requested = Listener(name, int(str(port)))
            agent.tell("look")

    def ready(self, ready: bool) -> None:
        """Take this process out of the share, or back in. Does not block.

        The entry stays while another process of the server is ready. Taken out by hand it stays
        out, whatever the option READY says. Before the process serves: how it will begin.
        """
        with _agents_lock:
            self._held_out = not ready
            agent = self._agent
            if agent is not None:
                agent.hold_out(not ready)

    def deregister(self, timeout: float = stopping.STOP_SECONDS) -> bool:
        """Give up this process's part in the entry; return whether that was done in time."""
        with _agents_lock:
            self._await_no_sign()
            agent = self._agent
        if agent is None:
            return True
        agent.request_stop()
        return agent.wait(timeout)

    def close(self) -> None:
        """Deregister and close this application's client. Idempotent; bounded."""
        self.deregister()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def __enter__(self) -> Self:
        """Return the host."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Deregister and close its client."""
        self.close()

    def after_fork_in_child(self) -> None:
        """Start afresh: the parent's agent is not ours."""
        self._lock = threading.Lock()
        self._agent = None
        self._awaits_sign = False

    def _announced(self, signal: Signal, sender: object, payload: Mapping[str, object]) -> None:
        agent = self._agent
        hosts = agent.hosts() if agent is not None and agent.made(sender) else [self]
        for host in hosts:
            for relay in host._followers:
                relay(signal, sender, payload)

    def _join_agent(self, worker: GunicornWorker | None) -> _Agent:
        """Return this process's agent for the service: an application may be built twice."""
        options = self.options
        entry = (options.config, options.service_name, options.service_address, options.service_id)
        with _agents_lock:
            self._await_no_sign()
            agent = _agents.get(entry)
            if agent is None:
                agent = _agents[entry] = _Agent(self, worker, lambda: _agents.pop(entry, None))
            if agent is not self._agent:
                self._agent = agent
                agent.serve_for(self)
                if self._held_out is not None:
                    agent.hold_out(self._held_out)
        return agent


_agents: dict[tuple[object, ...], _Agent] = {}
# Reentrant: a program may deregister in a handler of a signal that comes while this thread has it.
_agents_lock = threading.RLock()


class _ModuleState:
    """Forgets the parent's agents in a forked child."""

    def after_fork_in_child(self) -> None:
        global _agents_lock
        _agents_lock = threading.RLock()
        _agents.clear()


_module_state = _ModuleState()
forking.track(_module_state)


class _Agent:
    """What registers one application in this process."""

    def __init__(
        self, host: ServiceHost, worker: GunicornWorker | None, on_ended: Callable[[], object]
    ) -> None:
        self._on_ended = on_ended
        self.share: SharedRegistration | None = None
        self.given_address: str | None = None
        self.forced = host.options.register is True
        self.requested: Listener | None = None
        self._host = host
        self._options = host.options
        self._hosts: weakref.WeakSet[ServiceHost] = weakref.WeakSet()
        self._newest: SharedRegistration | None = None
        self._worker = worker
        self._socket_inode = 0
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._last_command: _Command | None = None
        self._held_out = False
        self._readiness: Readiness | None = None
        self._serving = False
        self._asked_to_stop_at: float | None = None
        self._stopping = False
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="etcd-host", daemon=True)
        self._starter: threading.Thread | None = None
        self._started = False

    # -- any thread ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; idempotent."""
        with _agents_lock:
            started, self._started = self._started, True
        if not started:
            stopping.add(self)
            self._start_thread()

    def _start_thread(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:
            # No more threads for this process. Nothing may wait for what will never end.
            self._end()
            raise

    def serve_for(self, host: ServiceHost) -> None:
        """Count in an application that this is the agent of."""
        self._hosts.add(host)

    def hosts(self) -> list[ServiceHost]:
        """Return the applications that this is the agent of."""
        with _agents_lock:
            return list(self._hosts)

    def made(self, registration: object) -> bool:
        """Tell whether this is the entry's registration, or was until just now."""
        return registration is not None and registration is self._newest

    def request_stop(self, *, drain: bool = False) -> None:
        """Ask for the end. Callable from a signal handler: this queue's put takes no lock."""
        if self._asked_to_stop_at is None:
            self._asked_to_stop_at = time.monotonic()
        self._inbox.put("drain" if drain else "stop")

    def tell(self, command: _Command) -> None:
        """Have the thread do something when it comes to it."""
        self._inbox.put(command)

    def hold_out(self, held_out: bool) -> None:
        """Take this process out of the share by hand, or back in."""
        with _agents_lock:
            if self._started:
                self.tell("pause" if held_out else "resume")
            else:
                self._held_out = held_out

    def wait(self, seconds: float) -> bool:
        """Wait for the end."""
        return self._ended.wait(seconds)

    @property
    def serving(self) -> bool:
        """Whether the address was found and the end has not come."""
        return self._serving and not self._ended.is_set()

    @property
    def stop_seconds(self) -> float:
        """How long the end may take."""
        return self._options.drain + stopping.STOP_SECONDS

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            _log.exception(
                "registering the service failed",
                extra=fields(Event.HOSTING_FAILED, service=self._options.service_name),
            )
        finally:
            if self._readiness is not None:
                self._readiness.stop()
            self._end()

    def _end(self) -> None:
        self._on_ended()
        self._ended.set()
        stopping.finished(self)

    def _serve(self) -> None:
        if not Presence.supported():
            _log.warning(
                "%s is not registered: this platform has no lock files",
                self._options.service_name,
                extra=fields(
                    Event.HOSTING_SKIPPED,
                    service=self._options.service_name,
                    reason="no lock files",
                ),
            )
            return
        find = self._workers_listener if self._worker is not None else self._await_listener
        listener = find()
        if listener is None and not self._address_is_given():
            return
        self._serving = True
        self._readiness = self._begin_to_ask()
        while not self._stopping:
            self._follow_readiness(listener)
            self._sleep(None if self._readiness is None else self._readiness.interval)
        self._leave(self._options.drain if self._last_command == "drain" else 0.0)

    def _begin_to_ask(self) -> Readiness | None:
        question = self._options.ready
        if question is None:
            return None
        readiness = Readiness(
            self._options.service_name or "",
            question,
            self._options.ready_interval,
            self._host.ready_context,
            on_answer=lambda: self.tell("look"),
        )
        readiness.start()
        return readiness

    def _follow_readiness(self, listener: Listener | None) -> None:
        ready = self._readiness is None or self._readiness.look()
        ready = ready and not self._held_out
        if ready and self._starter is None:
            self._start_share(listener)
        elif not ready and self._starter is not None:
            self._leave(0.0)
            if self._starter.is_alive():
                self.tell("look")  # it may still make the entry
                return
            self._starter = self.share = None

    def _sleep(self, seconds: float | None) -> None:
        try:
            command = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return
        self._last_command = command
        self._stopping = command in ("stop", "drain")
        if command in ("pause", "resume"):
            self._held_out = command == "pause"

    def _address_is_given(self) -> bool:
        given = self.given_address or self._options.service_address
        return given is not None and not self._stopping

    # -- the address ---------------------------------------------------------------------------

    def _workers_listener(self) -> Listener | None:
        assert self._worker is not None
        sockets = self._worker.sockets
        found = listeners.of_worker(sockets)
        if sockets:
            self._socket_inode = listeners.inode(sockets[0])
        if not found and not self._address_is_given():
            _log.warning(
                "%s listens on a unix socket only and is not registered; set %sSERVICE_ADDRESS",
                self._options.service_name,
                self._options.label,
                extra=fields(
                    Event.HOSTING_SKIPPED, service=self._options.service_name, reason="unix socket"
                ),
            )
        return found[0] if found else None

    def _await_listener(self) -> Listener | None:
        """Wait until this process listens, and return where; None if it is to stop, or no matter.

        Two looks must agree: a reloader's parent listens for a moment before it starts the child.
        """
        pause = _FIRST_PAUSE
        before: list[Listener] = []
        since = began = time.monotonic()
        while not self._stopping:
            found = self._listeners()
            if self.forced and self._address_is_given() and self._needs_no_socket(found, began):
                return None
            if found != before:
                before, since, pause = found, time.monotonic(), _FIRST_PAUSE
            elif found and self._is_settled(time.monotonic() - since):
                listener = self._choose(found)
                if listener is not None:
                    return listener
            self._sleep(pause)
            pause = min(pause * 1.25, _LONGEST_PAUSE)
        return None

    @staticmethod
    def _needs_no_socket(found: list[Listener], began: float) -> bool:
        # A reloader's parent shows itself only some time after it loaded the application.
        patient = found or time.monotonic() - began >= _SUPERVISOR_SECONDS
        return bool(patient) and not process.is_supervisor()

    def _is_settled(self, seconds: float) -> bool:
        # What listens while modules are still imported is hardly the server.
        return not process.is_importing() or seconds >= _IMPORT_PATIENCE

    def _listeners(self) -> list[Listener]:
        if process.is_supervisor():
            return []
        if not self.forced and (process.runs_tests() or not self._host.may_serve()):
            return []
        found = listeners.listening()
        if not found and self.requested is not None:
            return [self.requested]
        if not found and self._address_is_given() and listeners.listens_on_unix():
            return [Listener("", 0)]
        return found

    def _choose(self, found: list[Listener]) -> Listener | None:
        if self._address_is_given() or len({each.port for each in found}) == 1:
            return found[0]
        self._complain_once(found)
        return None

    def _complain_once(self, found: list[Listener]) -> None:
        if self._complained:
            return
        self._complained = True
        service = self._options.service_name
        _log.warning(
            "%s listens on several ports (%s) and is not registered; set %sSERVICE_ADDRESS",
            service,
            ", ".join(str(each.port) for each in found),
            self._options.label,
            extra=fields(Event.HOSTING_SKIPPED, service=service, reason="several ports"),
        )

    # -- the entry -----------------------------------------------------------------------------

    def _start_share(self, listener: Listener | None) -> None:
        """Have the entry made, in a thread of its own: it resolves names and imports gRPC."""
        self._starter = threading.Thread(
            target=self._make_share, args=(listener,), name="etcd-host-start", daemon=True
        )
        self._starter.start()

    def _make_share(self, listener: Listener | None) -> None:
        try:
            from ..descriptor import Descriptor
            from ..sharing import SharedRegistration

            scope = self._host.client.scope()
            # The client has its own exit handler; ours must run first.
            stopping.run_before_other_exit_handlers()
            address = self._address(listener)
            descriptor = Descriptor(
                name=self._options.service_name or "",
                id=self._options.instance_id(address),
                address=address,
                metadata=self._options.metadata,
            )
            started = started_at(process.server_pid(self._worker))
            share = SharedRegistration(scope, descriptor, self._options.ttl, started)
            # Workers of a server that is stopped while it starts must not come and go each.
            if self._asked_to_stop_at is not None:
                share.begin_leaving(keep_entry=self._is_recycled())
            self.share = self._newest = share
            share.start()
        except Exception:
            _log.exception(
                "registering %s failed",
                self._options.service_name,
                extra=fields(Event.HOSTING_FAILED, service=self._options.service_name),
            )

    def _address(self, listener: Listener | None) -> str:
        given = self.given_address or self._options.service_address
        if given is not None:
            return given
        assert listener is not None
        address = listeners.advertised(listener, self._options.config.parsed_endpoints)
        if listeners.is_loopback(address):
            _log.warning(
                "%s is registered at %s, which only this machine can reach; set %sSERVICE_ADDRESS",
                self._options.service_name,
                address,
                self._options.label,
                extra=fields(
                    Event.HOSTING_LOOPBACK, service=self._options.service_name, address=address
                ),
            )
        return address

    # -- the end -------------------------------------------------------------------------------

    def _leave(self, drain: float) -> None:
        """Give the entry up within the stop's bound, however much of it each step takes."""
        asked_at = self._asked_to_stop_at if self._stopping else None
        deadline = (asked_at or time.monotonic()) + stopping.STOP_SECONDS
        if self._starter is not None:
            # It may be at a name server that does not answer.
            self._starter.join(max(0.0, deadline - time.monotonic()))
        share = self.share
        if share is None:
            return
        patience = max(0.0, deadline - time.monotonic())
        share.begin_leaving(keep_entry=self._stopping and self._is_recycled(), drain=drain)
        self._drain(share, drain)
        if not share.wait_left(patience):
            _log.warning(
                "%s: etcd was not told in time; it goes by its TTL",
                share,
                extra=fields(
                    Event.RELEASE_FAILED,
                    kind="registration",
                    name=share.info.name,
                    reason="no answer in time",
                ),
            )

    def _drain(self, share: SharedRegistration, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not share.wait_left(0.0):
            self._last_command = None
            self._sleep(min(left, _DRAIN_STEP))
            if self._last_command == "stop":
                share.hurry()
                return

    def _is_recycled(self) -> bool:
        """Tell whether gunicorn is about to start a successor: its arbiter lives and listens.

        On shutdown it closes its sockets before it signals the workers.
        """
        if self._worker is None or not self._socket_inode:
            return False
        parent = os.getppid()
        return parent == self._worker.ppid and listeners.holds_socket(parent, self._socket_inode)
