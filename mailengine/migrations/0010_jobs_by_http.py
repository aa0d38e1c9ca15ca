"""What a job is called by HTTP; keys are looked up by their hash, which goes when they are revoked."""

from typing import Any

from django.db import migrations, models

import mailengine.ids

BATCH = 1_000


def name_those_that_are_there(apps: Any, schema_editor: Any) -> None:
    jobs = apps.get_model("mailengine", "MessageJob").objects.using(schema_editor.connection.alias)
    while unnamed := list(jobs.filter(public_id=None).only("pk")[:BATCH]):
        for job in unnamed:
            job.public_id = mailengine.ids.uuid7()
        jobs.bulk_update(unnamed, ["public_id"])


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
        migrations.AddField("messagejob", "public_id", models.UUIDField(null=True, editable=False)),
        migrations.RunPython(name_those_that_are_there, migrations.RunPython.noop, elidable=True),
        migrations.AlterField(
            "messagejob",
            "public_id",
            models.UUIDField(default=mailengine.ids.uuid7, unique=True, editable=False),
        ),
    ]
