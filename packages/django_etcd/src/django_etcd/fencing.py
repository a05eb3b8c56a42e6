"""Writes that a process which lost its leadership, or its lock, can no longer make.

The row keeps the highest fencing token that wrote it, and an ``UPDATE`` with a lower one matches
nothing. No thread and no etcd in here: the comparison is the database's.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from django.core.exceptions import FieldError
from django.db import models
from django.db.models import Q

from etcd_core import current_term

M = TypeVar("M", bound=models.Model, covariant=True)


class FencedQuerySet(models.QuerySet[M]):
    """A query set whose model has a column for the fencing token."""

    fencing_field: ClassVar[str] = "fencing_token"

    def update_if_newer(self, *, token: int | None = None, **values: object) -> int:
        """Update the rows that no later token has written; return how many. One statement.

        The same token may write any number of times. Needs no transaction of yours.

        Args:
            token: The fencing token of a term or a lock; left out, the one of the guarded task that
                runs now.
            **values: As ``update()`` takes them.

        Returns:
            The number of rows written. Rows of the query set that are missing in it were written
            under a later token: this process is late and should stop.

        Raises:
            NotLeader: No token was given and no guarded task runs.
            FieldError: A value's column is in another table than the token's, so that one statement
                cannot write both (multi-table inheritance).

        Example:
            >>> @leader_only("billing")
            ... def close_month():
            ...     if not Month.objects.filter(pk=7).update_if_newer(state="closed"):
            ...         raise RuntimeError("another process went on from here")
        """
        token = current_term().token if token is None else token
        self._check_one_table(values)
        field = self.fencing_field
        not_later = Q(**{f"{field}__lte": token}) | Q(**{f"{field}__isnull": True})
        written: int = self.filter(not_later).update(**{field: token, **values})
        return written

    def _check_one_table(self, values: dict[str, object]) -> None:
        meta = self.model._meta
        own = meta.get_field(self.fencing_field).model
        strangers = sorted(name for name in values if meta.get_field(name).model is not own)
        if strangers:
            raise FieldError(
                f"update_if_newer: {', '.join(strangers)} of {meta.label} is not in the table of "
                f"{self.fencing_field}; put the token's column where the values are"
            )


FencedManager = models.Manager.from_queryset(FencedQuerySet)
"""A manager with :meth:`FencedQuerySet.update_if_newer`."""


class FencedModel(models.Model):
    """A model whose rows remember the fencing token of their last guarded write.

    Plain ``save()`` and ``update()`` do not look at it: use ``update_if_newer`` for every write
    that must be refused from a process that is late.
    """

    fencing_token: models.BigIntegerField[int, int] = models.BigIntegerField(
        default=0, editable=False
    )

    objects = FencedManager()

    class Meta:
        """Only a base."""

        abstract = True
