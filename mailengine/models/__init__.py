"""The rows, and every change of state they can go through."""

from .api_keys import ApiKey
from .attempts import Attempt
from .content import Attachment, Content, ContentFile
from .idempotency import IdempotencyKey
from .jobs import JobRecipients, MessageJob
from .messages import Lease, Message, Priority
from .providers import ProviderState
from .suppressions import Suppression
from .workers import Worker

__all__ = [
    "ApiKey",
    "Attachment",
    "Attempt",
    "Content",
    "ContentFile",
    "IdempotencyKey",
    "JobRecipients",
    "Lease",
    "Message",
    "MessageJob",
    "Priority",
    "ProviderState",
    "Suppression",
    "Worker",
]
