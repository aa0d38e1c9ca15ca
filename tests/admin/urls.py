"""Pages for a real browser: a hostile mail as the admin serves it, what must never be asked for, and pages of staff."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.urls import path

from mailengine.admin.compose import compose
from mailengine.admin.preview import preview_response
from mailengine.models import Message, ProviderState

HOSTILE = """
<html><head><base href="/loaded/base/"><meta http-equiv="refresh" content="0; url=/loaded/refresh">
<style>@import url(/loaded/style);</style><link rel="stylesheet" href="/loaded/link"></head>
<body><p>The mail itself</p><script>document.body.innerHTML = "OW" + "NED";</script>
<img src="/loaded/image" onerror="document.body.innerHTML = 'OW' + 'NED'">
<svg onload="document.body.innerHTML = 'OW' + 'NED'"><script>document.title = "OW" + "NED"</script></svg>
<iframe src="/loaded/frame"></iframe><form id="f" action="/loaded/form"><input autofocus onfocus="f.submit()"></form>
</body></html>
"""

loaded: list[str] = []


def preview(request: HttpRequest) -> HttpResponse:
    return preview_response(HOSTILE)


def load(request: HttpRequest, what: str) -> HttpResponse:
    loaded.append(what)
    return HttpResponse("OWNED")


def overview(request: HttpRequest, alias: str = "") -> HttpResponse:
    """The pages of the providers as a superuser sees them, under a policy that lets nothing in but what is served."""
    request.user = User.objects.get(is_superuser=True)
    pages = admin.site._registry[ProviderState]
    response = pages.change_view(request, alias) if alias else pages.changelist_view(request)
    response.render()
    response["Content-Security-Policy"] = "default-src 'self'"
    return response


def compose_page(request: HttpRequest) -> HttpResponse:
    """The page on which staff write a mail, under the same policy."""
    request.user = User.objects.get(is_superuser=True)
    response = compose(request, pages=admin.site._registry[Message])
    response.render()
    response["Content-Security-Policy"] = "default-src 'self'"
    return response


urlpatterns = [
    path("preview/", preview),
    path("loaded/<path:what>", load),
    path("compose/", compose_page),
    path("overview/", overview),
    path("overview/<alias>/", overview),
    path("admin/", admin.site.urls),
]
