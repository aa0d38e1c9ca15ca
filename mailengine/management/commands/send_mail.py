"""Send the mail that is queued and due, by priority; rescue what lost workers left."""

from ..sending import SendingCommand


class Command(SendingCommand):
    """`manage.py send_mail`, for cron each minute; overlapping runs share the work."""

    help = "Send the mail that is queued and due, by priority; rescue what lost workers left."
    name = "send_mail"
    deferred = False
