"""Which email service provider stands behind an alias."""

from __future__ import annotations

from ..compat import mailer_class


def esp_name(alias: str) -> str:
    """The ESP as Anymail calls it ("Mailgun", "Amazon SES"); empty for other backends, and where there is none."""
    try:
        backend = mailer_class(alias)
    except Exception:  # noqa: BLE001  Its module is anybody's code, and what is wrong is told when a mail goes there.
        return ""
    name = getattr(backend, "esp_name", "")
    return name if isinstance(name, str) else ""
