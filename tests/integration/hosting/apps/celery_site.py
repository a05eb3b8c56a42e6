"""A Celery application beside a Flask one that would register, did a server load it."""

import running_site  # noqa: F401
from celery import Celery
from flask_site import app as flask_app

celery_app = Celery("running", broker="memory://")
assert flask_app.config["ETCD_REGISTER"] == "true"
__all__ = ["celery_app", "flask_app"]
