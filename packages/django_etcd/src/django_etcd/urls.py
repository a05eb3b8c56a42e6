"""``path("etcd/", include("django_etcd.urls"))`` serves the health view at ``etcd/health``."""

from __future__ import annotations

from django.urls import path

from . import views

app_name = "django_etcd"
urlpatterns = [path("health", views.health, name="health")]
