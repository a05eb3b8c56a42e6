"""A Flask application whose cluster page is for who was at ``/enter``; with a strict policy."""

import os

from flask import Flask, Response, request

from flask_etcd import Etcd

app = Flask(__name__)
app.config.update(
    ETCD_ENDPOINTS=os.environ["TEST_ENDPOINTS"], ETCD_PREFIX=os.environ["TEST_PREFIX"]
)
etcd = Etcd(app)
page = etcd.status_blueprint(guard=lambda: request.cookies.get("who") == "admin")
app.register_blueprint(page, url_prefix="/status")


@app.get("/")
def hello() -> str:
    return "hello"


@app.get("/enter")
def enter() -> Response:
    answer = Response("welcome")
    answer.set_cookie("who", "admin")
    return answer


@app.after_request
def strict_policy(answer: Response) -> Response:
    answer.headers["Content-Security-Policy"] = "default-src 'self'"
    return answer
