"""The admin page "etcd": read-only, for users with the permission ``django_etcd.view_cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.safestring import mark_safe

from etcd_core.statuspage import STYLE, collect, render

from ._state import current_host
from .models import Cluster

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[Cluster]
else:
    _Admin = admin.ModelAdmin


@admin.register(Cluster)
class ClusterAdmin(_Admin):
    """Shows services, elections, locks and configurations; reads etcd once per page."""

    def get_urls(self) -> list[URLPattern]:
        """Serve the page only: the other views of a model admin would ask for a table."""
        view = self.admin_site.admin_view(self.changelist_view)
        return [path("", view, name="django_etcd_cluster_changelist")]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: there is nothing to add."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Cluster | None = None) -> bool:
        """Refuse: the page is read-only."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Cluster | None = None) -> bool:
        """Refuse: the page is read-only."""
        return False

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, object] | None = None
    ) -> HttpResponse:
        """Answer with the page.

        Raises:
            PermissionDenied: The user may not view it.
        """
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        context = {
            **self.admin_site.each_context(request),
            "title": "etcd",
            # The fragment escapes every value itself.
            "style": mark_safe(STYLE),
            "fragment": mark_safe(render(collect(current_host().client))),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/django_etcd/cluster.html", context)
