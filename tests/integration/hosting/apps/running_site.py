import os

from flask import Flask

from etcd_core.hosting import when_running

when_running(lambda: os.write(1, f"running in {os.getpid()}\n".encode()))


def create_app() -> Flask:
    return Flask(__name__)
