"""How PostgreSQL keeps a table: what a migration can set beside its columns."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState


class StorageSettings(Operation):
    """Set storage parameters of a model's table, on PostgreSQL alone; undone, they are PostgreSQL's own again.

    They take effect at once, without a rewrite of the table: `fillfactor` on pages that are filled from then on.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, model_name: str, **parameters: float) -> None:
        self.model_name = model_name
        self.parameters = parameters

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__qualname__, [self.model_name], dict(self.parameters)

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        pass

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        values = ", ".join(f"{name} = {value}" for name, value in self.parameters.items())
        self._alter(app_label, schema_editor, to_state, f"SET ({values})")

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        self._alter(app_label, schema_editor, to_state, f"RESET ({', '.join(self.parameters)})")

    def describe(self) -> str:
        return f"Set storage parameters of {self.model_name}: {', '.join(self.parameters)}"

    def _alter(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState, change: str) -> None:
        model = state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and router.allow_migrate_model(connection.alias, model):
            schema_editor.execute(f"ALTER TABLE {schema_editor.quote_name(model._meta.db_table)} {change}")
