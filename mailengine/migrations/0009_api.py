"""Keys to the HTTP API, and whose mail is whose."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("mailengine", "0008_lighter_rows"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "client",
                    models.CharField(
                        help_text="Whose it is. All keys of a client see the same mail.",
                        max_length=50,
                        verbose_name="client",
                    ),
                ),
                ("prefix", models.CharField(editable=False, max_length=8, unique=True, verbose_name="begins with")),
                ("digest", models.CharField(editable=False, max_length=64)),
                (
                    "scopes",
                    models.JSONField(
                        default=list,
                        help_text='A list of "send:" and a stream, "read", "cancel", "suppressions".',
                        verbose_name="may",
                    ),
                ),
                (
                    "allowed_senders",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text='A list of addresses and "@domains". Empty: as the site itself alone.',
                        verbose_name="may send as",
                    ),
                ),
                (
                    "networks",
                    models.JSONField(
                        blank=True,
                        default=list,
                        help_text="A list of IP networks. Empty: from anywhere.",
                        verbose_name="may come from",
                    ),
                ),
                (
                    "rate",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text='Mails, such as "100/min, 5000/day".',
                        max_length=100,
                        verbose_name="rate",
                    ),
                ),
                ("usage", models.JSONField(default=dict, editable=False)),
                ("expires_at", models.DateTimeField(blank=True, null=True, verbose_name="expires")),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True, verbose_name="revoked")),
                ("last_used_at", models.DateTimeField(blank=True, editable=False, null=True, verbose_name="last used")),
                ("created_at", models.DateTimeField(auto_now_add=True, verbose_name="made")),
            ],
            options={
                "verbose_name": "API key",
                "verbose_name_plural": "API keys",
                "ordering": ["client", "-created_at"],
            },
        ),
        migrations.AddField(
            model_name="idempotencykey",
            name="answer",
            field=models.JSONField(null=True),
        ),
        migrations.AddField(
            model_name="message",
            name="client",
            field=models.CharField(
                blank=True, default="", help_text="Who queued it by HTTP.", max_length=50, verbose_name="client"
            ),
        ),
        migrations.AddField(
            model_name="messagejob",
            name="client",
            field=models.CharField(
                blank=True, default="", help_text="Who queued it by HTTP.", max_length=50, verbose_name="client"
            ),
        ),
        migrations.AddIndex(
            model_name="message",
            index=models.Index(
                condition=models.Q(("client", ""), _negated=True), fields=["client", "id"], name="mailengine_client"
            ),
        ),
        migrations.AddField(
            model_name="apikey",
            name="created_by",
            field=models.ForeignKey(
                blank=True,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
    ]
