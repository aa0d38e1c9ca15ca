"""Which email service provider stands behind an alias."""

from __future__ import annotations

from django.utils.module_loading import import_string

from ..compat import MailerDoesNotExist, mailer_backend_path


def esp_name(alias: str) -> str:
    """The ESP as Anymail calls it ("Mailgun", "Amazon SES"); empty for other backends, and where there is none."""
    try:
        backend = import_string(mailer_backend_path(alias))
    except (MailerDoesNotExist, ImportError):
        return ""
    name = getattr(backend, "esp_name", "")
    return name if isinstance(name, str) else ""
