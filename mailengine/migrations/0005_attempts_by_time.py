from django.db import migrations

import mailengine.models.indexes


class Migration(migrations.Migration):
    dependencies = [
        ("mailengine", "0004_provider_switches_and_rates"),
    ]

    operations = [
        migrations.AddIndex(
            model_name="attempt",
            index=mailengine.models.indexes.TimeIndex(field="begun_at", name="mailengine_begun"),
        ),
    ]
