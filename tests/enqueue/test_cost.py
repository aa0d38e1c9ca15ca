"""What queueing one mail asks of the database."""

import pytest

from mailengine import queue_mail
from mailengine.models import Message

pytestmark = pytest.mark.django_db


def test_one_mail_is_two_statements(django_assert_num_queries):
    with django_assert_num_queries(4):  # within a savepoint: that and its release
        message = queue_mail("Hi", "Hello", "a@example.org", ["ann@example.org"], html_message="<p>Hello</p>")

    found = Message.objects.get()
    assert (message.created_at, message.available_at) == (found.created_at, found.available_at)
    assert found.created_at == found.available_at == found.content.created_at
