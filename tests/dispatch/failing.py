"""A module with a bug: it can't be imported."""

raise RuntimeError("a bug of the project")
