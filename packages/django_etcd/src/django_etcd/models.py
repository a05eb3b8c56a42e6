"""No tables: one unmanaged model gives the admin page its entry and its permission."""

from __future__ import annotations

from django.db import models


class Cluster(models.Model):
    """What this application has in etcd."""

    class Meta:
        """Only the permission to view exists."""

        managed = False
        default_permissions = ("view",)
        verbose_name = "cluster"
        verbose_name_plural = "cluster"
