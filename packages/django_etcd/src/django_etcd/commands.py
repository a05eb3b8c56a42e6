"""Management commands that run on one process of the fleet."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand

from etcd_core.tasks import leader_only


class LeaderOnlyCommand(BaseCommand):
    """A management command that only the leader runs; elsewhere it does nothing and exits with 0.

    For cron on every machine: machines whose clocks differ a little run it once, since a run keeps
    the others out for ``at_least_for`` seconds. Write ``handle_as_leader`` in place of ``handle``.

    Example:
        >>> class Command(LeaderOnlyCommand):
        ...     election = "nightly-report"
        ...
        ...     def handle_as_leader(self, *args, **options):
        ...         ...
    """

    election: ClassVar[str] = ""
    ttl: ClassVar[float] = 15.0
    at_least_for: ClassVar[float] = 30.0

    def handle(self, *args: Any, **options: Any) -> str | None:
        """Run ``handle_as_leader`` if this process leads.

        Raises:
            ImproperlyConfigured: The class names no election.
        """
        if not self.election:
            raise ImproperlyConfigured(f"{type(self).__module__}: set Command.election")
        guard = leader_only(self.election, ttl=self.ttl, at_least_for=self.at_least_for)
        result: str | None = guard(self.handle_as_leader)(*args, **options)
        return result

    def handle_as_leader(self, *args: Any, **options: Any) -> str | None:
        """Do the work; runs in one process of the fleet at a time."""
        raise NotImplementedError("subclasses of LeaderOnlyCommand provide handle_as_leader()")
