"""Send again the mail that was deferred and is due; touch nothing else."""

from ..sending import SendingCommand


class Command(SendingCommand):
    """`manage.py retry_deferred`, for cron each minute; overlapping runs share the work."""

    help = "Send again the mail that was deferred and is due; touch nothing else."
    name = "retry_deferred"
    deferred = True
