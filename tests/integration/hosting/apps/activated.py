"""Becomes another Python command, with a listening socket handed over as systemd does it."""

import os
import socket
import sys

_FIRST = 3

listening = socket.create_server(("127.0.0.1", int(os.environ["TEST_PORT"])))
listening.set_inheritable(True)
os.dup2(listening.fileno(), _FIRST)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
