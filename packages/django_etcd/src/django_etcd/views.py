"""The health view. No I/O: it tells what this process knows."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from etcd_core.hosting.health import check

from ._state import current_host


@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 while this process is ready, else 503, with the details as JSON."""
    found = check(current_host())
    answer = JsonResponse(found.details, status=200 if found.ready else 503)
    # Else Django would log every probe during an outage as an error, and mail it to the admins.
    answer._has_been_logged = True  # type: ignore[attr-defined]
    return answer
