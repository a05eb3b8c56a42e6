import os
import time

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

import django_etcd


def hello(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"pid": os.getpid()})


def slow(request: HttpRequest, seconds: str) -> HttpResponse:
    print("slow begins", flush=True)
    time.sleep(float(seconds))
    return HttpResponse("done")


def registered(request: HttpRequest) -> HttpResponse:
    registration = django_etcd.registration()
    return JsonResponse({"registered": registration is not None and registration.registered})


def ready(request: HttpRequest, state: str) -> HttpResponse:
    django_etcd.ready(state == "yes")
    return hello(request)


urlpatterns = [
    path("", hello),
    path("slow/<seconds>", slow),
    path("ready/<state>", ready),
    path("registered", registered),
    path("etcd/", include("django_etcd.urls")),
]
if settings.WITH_ADMIN:
    from django.contrib import admin

    urlpatterns.append(path("admin/", admin.site.urls))
