from mailengine.testing.pytest_plugin import mail_queue

__all__ = ["mail_queue"]
