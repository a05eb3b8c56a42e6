"""The admin page of the cluster: read-only, for who has ``django_etcd.view_cluster``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.cache import patch_cache_control

from etcd_core import statuspage

from ._state import current_host
from .models import Cluster

if TYPE_CHECKING:
    _Admin = admin.ModelAdmin[Cluster]
else:
    _Admin = admin.ModelAdmin

_ASSET_SECONDS = 86400


@admin.register(Cluster)
class ClusterAdmin(_Admin):
    """Shows services, elections, locks and configurations; reads etcd when it is asked for."""

    def get_urls(self) -> list[URLPattern]:
        """Serve the page and its parts only: a model admin's other views would ask for a table."""
        view = self.admin_site.admin_view
        assets = [
            path(name, view(self.asset_view, cacheable=True), {"name": name})
            for name in statuspage.ASSETS
        ]
        return [
            path("", view(self.changelist_view), name="django_etcd_cluster_changelist"),
            path(
                statuspage.FRAGMENT, view(self.fragment_view), name="django_etcd_cluster_fragment"
            ),
            *assets,
        ]

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
        if (refusal := self._refusal(request)) is not None:
            return refusal
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": "etcd cluster",
            "opts": self.opts,
            "links": statuspage.links(),
            "page": statuspage.body(statuspage.collect(current_host().client)),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/django_etcd/cluster.html", context)

    def fragment_view(self, request: HttpRequest) -> HttpResponse:
        """Answer with what the page asks for again and again.

        Where etcd cannot be read that is said inside: for a 5xx Django would mail the admins.

        Raises:
            PermissionDenied: The user may not view it.
        """
        if (refusal := self._refusal(request)) is not None:
            return refusal
        return HttpResponse(statuspage.fragment(statuspage.collect(current_host().client)))

    def asset_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Answer with the style sheet or the script.

        Raises:
            PermissionDenied: The user may not view the page.
        """
        if (refusal := self._refusal(request)) is not None:
            return refusal
        answer = HttpResponse(statuspage.asset(name), content_type=statuspage.ASSETS[name])
        patch_cache_control(answer, private=True, max_age=_ASSET_SECONDS)
        return answer

    def _refusal(self, request: HttpRequest) -> HttpResponse | None:
        if not self.has_view_permission(request):
            raise PermissionDenied
        if request.method not in ("GET", "HEAD"):
            return HttpResponseNotAllowed(["GET", "HEAD"])
        return None
