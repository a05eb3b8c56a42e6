"""Run by unittest: a process that runs tests, and serves what two applications are loaded for."""

import os
import threading
import unittest

from flask import Flask
from werkzeug.serving import make_server

from etcd_core.testing import eventually
from flask_etcd import Etcd


def application(register: object) -> tuple[Flask, Etcd]:
    app = Flask(__name__)
    app.config.update(
        TESTING=True,
        ETCD_ENDPOINTS=os.environ["TEST_ENDPOINTS"],
        ETCD_PREFIX=os.environ["TEST_PREFIX"],
        ETCD_SERVICE_NAME=os.environ["TEST_SERVICE"],
        ETCD_REGISTER=register,
    )
    return app, Etcd(app)


class Served(unittest.TestCase):
    def test_only_the_one_that_is_told_to_registers(self) -> None:
        app, told = application(True)
        _, automatic = application("auto")
        server = make_server("127.0.0.1", int(os.environ["TEST_PORT"]), app)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        eventually(lambda: told.registration is not None and told.registration.registered, 60)
        # It looked at the same sockets for as long.
        assert automatic.registration is None
