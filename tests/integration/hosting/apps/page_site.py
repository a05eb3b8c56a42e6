"""Settings of a Django site with a database in a file, under a strict content security policy.

Run as a program it makes the database and two users: ``root``, and ``clerk`` without permissions.
"""

import os
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from djsite.settings import *  # noqa: F403

from etcd_core.statuspage.reading import collect

# An outage shows that much sooner.
assert collect.__kwdefaults__ is not None
collect.__kwdefaults__["timeout"] = 1.5
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["TEST_DATABASE"]}
}
MIDDLEWARE = ["page_site.strict_policy", *MIDDLEWARE]  # noqa: F405
# Their tables, without the history of them: only ours is of interest.
MIGRATION_MODULES = dict.fromkeys(["admin", "auth", "contenttypes", "sessions"])
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


def strict_policy(
    get_response: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    def respond(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        response["Content-Security-Policy"] = "default-src 'self'"
        return response

    return respond


def make_database() -> None:
    import django
    from django.core.management import call_command
    from django.db import connection

    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    from django.contrib.auth.models import User

    User.objects.create_superuser("root", "", "root")
    User.objects.create_user("clerk", "", "clerk", is_staff=True)
    tables = connection.introspection.table_names()
    print("tables of django_etcd:", [name for name in tables if "etcd" in name])


if __name__ == "__main__":
    make_database()
