"""The admin: send an update to many, and see what became of every mail.

`SendEmailUpdateMixin` is for the project's own ModelAdmins; the other modules register mailengine's models, one each.
"""

from __future__ import annotations

from . import api_keys, attempts, jobs, messages, providers, suppressions, workers  # noqa: F401  each registers its model
from .update import SendEmailUpdateMixin

__all__ = ["SendEmailUpdateMixin"]
