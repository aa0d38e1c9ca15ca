"""What the servers of api.py answer: mailengine's API, and beside it the least that a view does with such a request."""

from __future__ import annotations

import json
from typing import Any

from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt

from mailengine.clock import read_now
from mailengine.models import Content, Message


@csrf_exempt
def one_row(request: HttpRequest) -> JsonResponse:
    """The words of the mail as a row, whoever asks."""
    mail = json.loads(request.body)
    with transaction.atomic():
        content = _content(mail)
    return JsonResponse({"id": content.pk}, status=201)


@csrf_exempt
def two_rows(request: HttpRequest) -> JsonResponse:
    """The words, and the message: what the API writes, too."""
    mail = json.loads(request.body)
    with transaction.atomic():
        content = _content(mail)
        message = Message.objects.create(
            content=content,
            recipient=mail["to"][0],
            stream="transactional",
            priority=20,
            available_at=content.created_at,
            created_at=content.created_at,
        )
    return JsonResponse({"id": str(message.pk), "status": message.status}, status=201)


def _content(mail: dict[str, Any]) -> Content:
    words = {name: mail[name] for name in ("subject", "text", "html")}
    return Content.objects.create(**words, from_email=mail["from"], created_at=read_now("default"))


urlpatterns = [
    path("one-row", one_row),
    path("two-rows", two_rows),
    path("", include("mailengine.api.urls")),
]
