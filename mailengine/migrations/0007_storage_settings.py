"""Indexes that answer for what waits without its rows, and how PostgreSQL keeps the two large tables in order."""

from django.db import migrations

import mailengine.models.indexes
from mailengine.models.storage import StorageSettings

# A vacuum is due when so many rows are dead, and not a fifth of millions of finished ones: what was queued leaves its
# entries in the index that claims read, and the first claim after it would walk past all of them.
VACUUM = {
    "autovacuum_vacuum_threshold": 20_000,
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_insert_threshold": 100_000,
    "autovacuum_vacuum_insert_scale_factor": 0.05,
    "autovacuum_analyze_threshold": 20_000,
    "autovacuum_analyze_scale_factor": 0.02,
}


class Migration(migrations.Migration):
    dependencies = [
        ("mailengine", "0006_messages_in_a_call"),
    ]

    operations = [
        migrations.RemoveIndex(model_name="message", name="mailengine_due"),
        migrations.RemoveIndex(model_name="message", name="mailengine_deferred"),
        migrations.RemoveIndex(model_name="message", name="mailengine_expiring"),
        migrations.AddIndex(
            model_name="message",
            index=mailengine.models.indexes.OpenIndex(
                fields=["priority", "available_at", "id", "stream", "status"],
                name="mailengine_due",
                statuses=["queued", "uncertain"],
            ),
        ),
        migrations.AddIndex(
            model_name="message",
            index=mailengine.models.indexes.OpenIndex(
                fields=["priority", "available_at", "stream"],
                is_covered_by="mailengine_due",
                name="mailengine_deferred",
                statuses=["deferred"],
            ),
        ),
        migrations.AddIndex(
            model_name="message",
            index=mailengine.models.indexes.OpenIndex(
                fields=["expires_at"], is_sparse=True, name="mailengine_expiring", statuses=["queued", "deferred"]
            ),
        ),
        migrations.AddIndex(
            model_name="message",
            index=mailengine.models.indexes.OpenIndex(
                fields=["id", "stream"], is_covered_by="mailengine_due", name="mailengine_dead", statuses=["dead"]
            ),
        ),
        StorageSettings("Message", **VACUUM),
        # An entry doubles from Begin to End: in a page that is filled by half it stays where it is, and no index of the
        # ledger is written again.
        StorageSettings("Attempt", fillfactor=50, **VACUUM),
    ]
