"""What a job is called by HTTP; keys are looked up by their hash, which goes when they are revoked."""

from typing import Any

from django.db import migrations, models

import mailengine.ids
from mailengine.models.bulk import update_rows

BATCH = 2_000


def name_those_that_are_there(apps: Any, schema_editor: Any) -> None:
    job, using = apps.get_model("mailengine", "MessageJob"), schema_editor.connection.alias
    unnamed = job.objects.using(using).filter(public_id=None).order_by("pk").values_list("pk", flat=True)
    while keys := list(unnamed[:BATCH]):
        # By arrays where there are some: bulk_update() takes a minute for 300,000.
        rows = [(mailengine.ids.uuid7(), pk) for pk in keys]
        update_rows(job, rows, columns=["public_id"], keys=["id"], constants={}, using=using)


def give_revoked_keys_a_hash(apps: Any, schema_editor: Any) -> None:
    """That of no secret: before this migration each key has to have one."""
    keys = apps.get_model("mailengine", "ApiKey").objects.using(schema_editor.connection.alias)
    for pk in keys.filter(digest=None).values_list("pk", flat=True):
        keys.filter(pk=pk).update(digest=f"revoked-{pk}")


class Migration(migrations.Migration):
    dependencies = [("mailengine", "0009_api")]

    operations = [
        migrations.AlterField(
            "apikey",
            "scopes",
            models.JSONField(
                default=list,
                help_text='A list of "send:" and a stream, "urgent", "read", "cancel", "suppressions", "template:" and'
                ' how names of templates begin, "audience:" and its name.',
                verbose_name="may",
            ),
        ),
        migrations.AlterField(
            "apikey", "digest", models.CharField(editable=False, max_length=64, null=True, unique=True)
        ),
        migrations.RunPython(migrations.RunPython.noop, give_revoked_keys_a_hash, elidable=True),
        migrations.AddField("messagejob", "public_id", models.UUIDField(null=True, editable=False)),
        migrations.RunPython(name_those_that_are_there, migrations.RunPython.noop, elidable=True),
        migrations.AlterField(
            "messagejob",
            "public_id",
            models.UUIDField(default=mailengine.ids.uuid7, unique=True, editable=False),
        ),
    ]
