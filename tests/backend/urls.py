"""A site with Django's own account pages and a registration, for tests."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.mail import send_mail
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def register(request: HttpRequest) -> HttpResponse:
    address = request.POST["email"]
    user = get_user_model().objects.create_user(address, address, is_active=False)
    send_mail("Confirm your registration", f"Your number is {user.pk}", None, [address])
    return HttpResponse("Look into your mailbox")


urlpatterns = [
    path("accounts/", include("django.contrib.auth.urls")),
    path("register/", register),
    path("admin/", admin.site.urls),
]
