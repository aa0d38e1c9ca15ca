"""The project's pages: the admin, Django's own log-in and password reset, and the ESPs' way in."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.contrib.auth.views import PasswordResetView
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("accounts/", include("django.contrib.auth.urls")),
    # Under this name the admin's log-in page offers it to who forgot a password.
    path("admin/password_reset/", PasswordResetView.as_view(), name="admin_password_reset"),
    path("admin/", admin.site.urls),
    path("", include("mailengine.api.urls")),
]

if settings.ANYMAIL["WEBHOOK_SECRET"]:  # never an open door: anybody could call our mail sent
    urlpatterns.append(path("anymail/", include("anymail.urls")))
