from tests.attachments import files

__all__ = ["files"]
