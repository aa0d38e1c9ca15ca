"""A small newsroom: issues and articles, and the subscribers who hear of them by mail."""
