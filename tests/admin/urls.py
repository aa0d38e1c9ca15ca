"""A hostile mail as the admin serves it, and a page that must never be asked for."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from mailengine.admin.preview import preview_response

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


urlpatterns = [path("preview/", preview), path("loaded/<path:what>", load)]
