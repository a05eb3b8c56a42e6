import logging
import os

import told  # noqa: F401

from etcd_core.hosting import listeners

if "TEST_NO_PROC" in os.environ:
    listeners._FD_DIRECTORY = "/nonexistent"

logging.basicConfig()
logging.getLogger("etcd_core").setLevel("INFO")

SECRET_KEY = "test"
DEBUG = os.environ.get("TEST_DEBUG") == "1"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "djsite.urls"
WSGI_APPLICATION = "djsite.wsgi.application"
# With it a process takes half as long again to start.
WITH_ADMIN = os.environ.get("TEST_ADMIN") == "1"
INSTALLED_APPS = [
    *(
        f"django.contrib.{name}"
        for name in ("admin", "auth", "contenttypes", "sessions", "messages")
        if WITH_ADMIN
    ),
    "django_etcd",
    "djsite",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
][: 3 if WITH_ADMIN else 0]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ][: 3 if WITH_ADMIN else 1]
        },
    }
]
STATIC_URL = "static/"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
TEST_RUNNER = "django.test.runner.DiscoverRunner"
ETCD = {
    "ENDPOINTS": os.environ["TEST_ENDPOINTS"],
    "PREFIX": os.environ["TEST_PREFIX"],
    "SERVICE_NAME": os.environ["TEST_SERVICE"],
    "SERVICE_METADATA": {"framework": "django"},
    "SERVICE_TTL": os.environ.get("TEST_TTL", "600"),
    "TIMEOUT": 2,
}
for _name in ("SERVICE_ADDRESS", "SERVICE_ID", "REGISTER", "DRAIN", "READY", "READY_INTERVAL"):
    if f"TEST_{_name}" in os.environ:
        ETCD[_name] = os.environ[f"TEST_{_name}"]
