"""What is written with each message and each turn of a worker: no check of a key, and no index on the heartbeat."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("mailengine", "0007_storage_settings"),
    ]

    operations = [
        migrations.AlterField(
            model_name="message",
            name="content",
            field=models.ForeignKey(
                db_constraint=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="messages",
                to="mailengine.content",
            ),
        ),
        migrations.AlterField(
            model_name="worker",
            name="seen_at",
            field=models.DateTimeField(verbose_name="last seen"),
        ),
        migrations.AlterField(
            model_name="worker",
            name="stopped_at",
            field=models.DateTimeField(db_index=True, null=True, verbose_name="stopped"),
        ),
    ]
