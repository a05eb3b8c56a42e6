"""A Celery application beside a Flask one that would register, did a server load it."""

from flask_site import app as flask_app
from running_site import celery_app

assert flask_app.config["ETCD_REGISTER"] == "true"
__all__ = ["celery_app", "flask_app"]
