"""The Flask extension. Holds no etcd logic: one service host per application does the work."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    has_app_context,
    jsonify,
    make_response,
    request,
    request_started,
)

from etcd_core import statuspage
from etcd_core.errors import InvalidConfig
from etcd_core.hosting import HostOptions, ServiceHost, process
from etcd_core.hosting.health import check
from etcd_core.hosting.options import OPTIONS
from etcd_core.tasks import exclusive, leader_only, set_default_client, with_client

from .signals import forward

if TYPE_CHECKING:
    from etcd_core import Client, ServiceView
    from etcd_core.sharing import SharedRegistration

EXTENSION = "etcd"
PREFIX = "ETCD_"


class Etcd:
    """etcd for a Flask application. Safe to use from any thread; nothing is sent before it is used.

    State lives in ``app.extensions["etcd"]``, so one object serves several applications. Outside an
    application context (a scheduler's thread) it means its only application.

    Args:
        app: The application; or call :meth:`init_app` later.

    Attributes:
        leader_only: :func:`etcd_core.leader_only`, with this extension's client.
        exclusive: :func:`etcd_core.exclusive`, with this extension's client.

    Example:
        >>> etcd = Etcd()
        >>> def create_app():
        ...     app = Flask(__name__)
        ...     app.config.update(ETCD_ENDPOINTS=["127.0.0.1:2379"], ETCD_SERVICE_NAME="billing")
        ...     etcd.init_app(app)
        ...     return app
    """

    def __init__(self, app: Flask | None = None) -> None:
        self._hosts: weakref.WeakSet[ServiceHost] = weakref.WeakSet()
        self.leader_only = with_client(leader_only, lambda: self.client)
        self.exclusive = with_client(exclusive, lambda: self.client)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Configure from ``app.config`` and register the service once this process serves.

        Does no I/O. Set the options before, all named ``ETCD_...``.

        Raises:
            InvalidConfig: An option is unusable.
        """
        host = ServiceHost(
            _read_options(app), may_serve=lambda: not app.testing, ready_context=app.app_context
        )
        app.extensions[EXTENSION] = host
        self._hosts.add(host)
        forward(app, host)
        set_default_client(lambda: self.client)
        _add_commands(app, host)
        # Other commands load the application too; the command line alone knows which it is.
        if process.flask_command() in (None, "run"):
            host.arm()
        if host.awaits_request:
            _note_first_request(app, host)

    def health_blueprint(self, name: str = "etcd") -> Blueprint:
        """Return a blueprint with ``/health``: 200 while this process is ready, else 503.

        It tells what this process knows, as JSON, and asks etcd nothing.

        Example:
            >>> app.register_blueprint(etcd.health_blueprint(), url_prefix="/etcd")
        """
        blueprint = Blueprint(name, __name__)

        @blueprint.get("/health")
        def health() -> Response:
            found = check(self._host())
            return _uncached(jsonify(found.details), 200 if found.ready else 503)

        return blueprint

    def status_blueprint(self, guard: Callable[[], bool], name: str = "etcd_status") -> Blueprint:
        """Return a blueprint with a page of all services, elections, locks and configurations.

        Read-only; what looks like a secret is masked; it keeps itself current. Nothing of it is
        inline or from elsewhere, so a content security policy of ``'self'`` suffices.

        Args:
            guard: Called in each request; the page is refused with 403 unless it returns True.
            name: The blueprint's name.

        Example:
            >>> page = etcd.status_blueprint(guard=lambda: current_user.is_admin)
            >>> app.register_blueprint(page, url_prefix="/admin/etcd")
        """
        blueprint = Blueprint(name, __name__)

        @blueprint.before_request
        def refuse_strangers() -> None:
            if guard() is not True:
                abort(403)

        @blueprint.get("/")
        def status() -> Response:
            return _uncached(statuspage.document(statuspage.collect(self.client)))

        @blueprint.get(f"/{statuspage.FRAGMENT}")
        def fragment() -> Response:
            return _uncached(statuspage.fragment(statuspage.collect(self.client)))

        @blueprint.get(f"/<any({', '.join(map(repr, statuspage.ASSETS))}):asset>")
        def asset(asset: str) -> Response:
            answer = Response(statuspage.asset(asset), content_type=statuspage.ASSETS[asset])
            answer.cache_control.private = True
            answer.cache_control.max_age = 86400
            return answer

        return blueprint

    @property
    def client(self) -> Client:
        """This process's client of the current application. No I/O; do not close it."""
        return self._host().client

    @property
    def registration(self) -> SharedRegistration | None:
        """This process's part in the registry entry; None while this process does not serve."""
        return self._host().registration

    def ready(self, ready: bool) -> None:
        """Take this process out of the registry entry, or back in. Does not block.

        The entry stays while another worker of the server is ready.
        """
        self._host().ready(ready)

    def services(self, name: str) -> ServiceView:
        """Return the live view of a service; the first call waits for the first snapshot.

        Example:
            >>> etcd.services("billing").pick().address
            '10.0.0.5:8080'
        """
        return self.client.services(name)

    def _host(self) -> ServiceHost:
        if has_app_context():
            host = current_app.extensions.get(EXTENSION)
            if isinstance(host, ServiceHost):
                return host
        known = list(self._hosts)
        if len(known) == 1:
            return known[0]
        raise RuntimeError(
            "Etcd: no application; call init_app(app) first"
            if not known
            else "Etcd: several applications use it; push an application context"
        )


def _uncached(content: str | Response, status: int = 200) -> Response:
    answer = make_response(content, status)
    answer.cache_control.no_store = True
    return answer


def _note_first_request(app: Flask, host: ServiceHost) -> None:
    # Weakly: an application that is dropped before it serves is not to live on by its receiver.
    reference = weakref.ref(host)

    def note(sender: Flask, **_: object) -> None:
        host = reference()
        if host is not None and host.awaits_request:
            environ = request.environ
            host.note_request(environ.get("SERVER_NAME", ""), environ.get("SERVER_PORT"))

    request_started.connect(note, app, weak=False)


def _add_commands(app: Flask, host: ServiceHost) -> None:
    try:
        from etcd_core.cli import build_group
    except ImportError:
        return
    app.cli.add_command(build_group(lambda: host))


def _read_options(app: Flask) -> HostOptions:
    own = {
        name.removeprefix(PREFIX): value
        for name, value in app.config.items()
        # Dynaconf's Flask extension puts its own options beside ours.
        if name.startswith(PREFIX) and not name.endswith("_FOR_DYNACONF")
    }
    unknown = sorted(set(own) - OPTIONS)
    if unknown:
        raise InvalidConfig(f"{PREFIX}{unknown[0]} is not an option of flask-etcd")
    return HostOptions.parse(own, label=PREFIX)
