"""The one page of the demo's Django app: it asks the shop, which it finds in the registry."""

from __future__ import annotations

import json
import urllib.request

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

import django_etcd


def front_page(request: HttpRequest) -> HttpResponse:
    shop = django_etcd.client().services("shop").pick()
    with urllib.request.urlopen(f"http://{shop.address}/", timeout=5) as answer:
        return JsonResponse({"shop": shop.id, "says": json.load(answer)["greeting"]})


urlpatterns = [path("", front_page)]
