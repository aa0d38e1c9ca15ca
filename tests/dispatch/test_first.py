import pytest
from django.core.management import call_command
from mailengine import queue_mail, queue_job
from mailengine.models import *
pytestmark = pytest.mark.django_db

def test_one(provider, capsys):
    m = queue_mail("hi", "text", "a@b.org", ["c@d.org"])
    call_command("send_mail")
    m.refresh_from_db()
    print(m.status, m.reason, [str(a) for a in m.attempts.all()])
    assert m.status == "sent"
    assert len(provider.accepted) == 1
    print(capsys.readouterr().out)

def test_job(provider, capsys):
    j = queue_job("hi", "text {{ n }}", "a@b.org", [(f"u{i}@d.org", {"n": i}) for i in range(100)])
    call_command("process_mail_jobs")
    call_command("send_mail")
    call_command("mail_status")
    j.refresh_from_db()
    print(capsys.readouterr().out)
    assert j.status == "done", vars(j)
    assert len(provider.accepted) == 100
