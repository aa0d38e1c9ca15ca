import json

import pytest
from django.core.management import call_command

from mailengine.testing import SMTPServer


@pytest.fixture
def smtp():
    with SMTPServer() as server:
        yield server


@pytest.fixture
def said(capsys):
    """What a command prints: `said("send_mail", limit=5)`."""

    def call(*arguments, **options):
        capsys.readouterr()
        call_command(*arguments, **options)
        return capsys.readouterr().out

    return call


@pytest.fixture
def said_as_json(said):
    """The one JSON object on one line that a command prints."""

    def call(*arguments, **options):
        (line,) = said(*arguments, "--json", **options).splitlines()
        return json.loads(line)

    return call
