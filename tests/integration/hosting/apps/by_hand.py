"""Programs of one's own that build the application and serve it: by_hand.py SERVER PORT."""

import sys
import threading
from collections.abc import Callable
from wsgiref.simple_server import make_server

from flask_site import create_app


def run_waitress(port: int) -> None:
    """In another thread than the one that built the application."""
    import waitress

    app = create_app()
    server = threading.Thread(
        target=waitress.serve, args=(app,), kwargs={"listen": f"127.0.0.1:{port}"}, daemon=True
    )
    server.start()
    while server.is_alive():
        server.join(0.05)


def run_wsgiref(port: int) -> None:
    """Serve by what Python brings."""
    make_server("127.0.0.1", port, create_app()).serve_forever()


def run_gevent(port: int) -> None:
    """Serve by gevent's sockets, with Python's own left alone."""
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), create_app()).serve_forever()


def run_gevent_late(port: int) -> None:
    """As before, imported when the application is there."""
    app = create_app()
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), app).serve_forever()


def run_uvloop(port: int) -> None:
    """Build the application before there is a loop, which then listens in C."""
    import uvicorn
    from asgiref.wsgi import WsgiToAsgi

    uvicorn.run(WsgiToAsgi(create_app()), port=port, loop="uvloop")


def run_granian(port: int) -> None:
    """Serve by Rust in a loop of one's own."""
    import asyncio

    from asgiref.wsgi import WsgiToAsgi
    from granian.server.embed import Server

    app = WsgiToAsgi(create_app())
    server = Server(app, address="127.0.0.1", port=port, interface="asginl")
    asyncio.run(server.serve())


def run_one_by_one(port: int) -> None:
    """Listen before there is an application, and then call nothing that is known."""
    with make_server("127.0.0.1", port, None) as server:  # type: ignore[arg-type]
        server.set_app(create_app())
        while True:
            server.handle_request()


SERVERS: dict[str, Callable[[int], None]] = {
    "waitress": run_waitress,
    "wsgiref": run_wsgiref,
    "gevent": run_gevent,
    "gevent-late": run_gevent_late,
    "uvloop": run_uvloop,
    "granian": run_granian,
    "one-by-one": run_one_by_one,
}

if __name__ == "__main__":
    SERVERS[sys.argv[1]](int(sys.argv[2]))
