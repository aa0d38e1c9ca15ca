"""The words and files of a mail, as a server receives them."""

from __future__ import annotations

import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.management import call_command

from mailengine import dispatch_slice, queue_job, queue_mail, queue_message
from mailengine.models import Attachment, Attempt, Content, ContentFile, JobRecipients, Message, MessageJob
from mailengine.pipeline.purge import purge

pytestmark = pytest.mark.django_db

MAIL = ("Hello", "Text", "shop@example.org", ["ann@example.org"])


def text(part):
    """The words of a part, whatever its line ends are and however it ends."""
    return "\n".join(part.get_content().splitlines())


def parts(mail):
    """Type and words of each part that isn't a container."""
    return [(part.get_content_type(), text(part)) for part in mail.walk() if not part.is_multipart()]


def test_text_and_html_are_alternatives(sent):
    queue_mail(*MAIL, html_message="<p>HTML</p>")
    (mail,) = sent()
    assert mail.get_content_type() == "multipart/alternative"
    assert parts(mail) == [("text/plain", "Text"), ("text/html", "<p>HTML</p>")]


def test_html_alone_gets_a_text_part(sent):
    """C08"""
    queue_mail("Hello", "", *MAIL[2:], html_message='<h1>News</h1><p>Read <a href="https://example.org/1">this</a></p>')
    assert text(sent()[0].get_body(("plain",))) == "News\n\nRead this (https://example.org/1)"


def test_html_as_the_body_gets_a_text_part(sent):
    """C08"""
    email = EmailMessage("Hello", "<p>News</p>", *MAIL[2:])
    email.content_subtype = "html"
    queue_message(email)
    (mail,) = sent()
    assert parts(mail) == [("text/plain", "News"), ("text/html", "<p>News</p>")]


def test_a_body_of_another_type_keeps_it(sent):
    email = EmailMessage("Hello", "# News", *MAIL[2:])
    email.content_subtype = "markdown"
    queue_message(email)
    assert sent()[0].get_content_type() == "text/markdown"


def test_all_alternatives_go(sent):
    email = EmailMultiAlternatives(*MAIL)
    email.attach_alternative("<p>", "text/html")
    email.attach_alternative(b"BEGIN:VCALENDAR", "text/calendar")
    queue_message(email)
    assert [kind for kind, _ in parts(sent()[0])] == ["text/plain", "text/html", "text/calendar"]


def test_merge_fields_are_filled_in_everywhere_and_escaped_in_html(sent):
    """C04"""
    queue_job(
        "For {{ name }}",
        "Dear {{ name }}",
        None,
        [("ann@example.org", {"name": "<Ann> Ä"})],
        html_message="<p>{{ name }}</p>",
    )
    call_command("process_mail_jobs", verbosity=0)
    (mail,) = sent()
    assert mail["Subject"] == "For <Ann> Ä"
    assert [words for _, words in parts(mail)] == ["Dear <Ann> Ä", "<p>&lt;Ann&gt; Ä</p>"]


def test_files_arrive_as_they_were(sent):
    inner = EmailMessage("Inner", "Inside", *MAIL[2:])
    pdf = bytes(range(256))
    queue_mail(
        *MAIL,
        attachments=[
            ("a.txt", "Grüße", "text/plain"),
            ("Übersicht.pdf", pdf, "application/pdf"),
            ("invite.ics", "BEGIN:VCALENDAR", "text/calendar; method=REQUEST"),
            ("inner.eml", inner.message().as_bytes(), "message/rfc822"),
            ("latin.csv", b"\xff\xfe", "text/csv"),
        ],
    )
    (mail,) = sent()
    found = {part.get_filename(): part for part in mail.iter_attachments()}
    assert text(found["a.txt"]) == "Grüße"
    assert found["Übersicht.pdf"].get_content() == pdf
    assert found["invite.ics"].get_params()[1:] == [("method", "REQUEST"), ("charset", "utf-8")]
    assert found["inner.eml"].get_content()["Subject"] == "Inner"
    assert found["latin.csv"].get_content() == b"\xff\xfe"


def test_a_folder_in_a_file_name_is_left_out(sent):
    queue_mail(*MAIL, attachments=[("../../etc/passwd", b"x", "application/pdf")])
    assert [part.get_filename() for part in sent()[0].iter_attachments()] == ["passwd"]


def test_a_lost_file_sets_its_mail_aside(sent, files):
    message = queue_mail(*MAIL, attachments=[("a.pdf", b"%PDF", "application/pdf")])
    files()[0].unlink()
    assert sent() == []
    message.refresh_from_db()
    assert (message.status, "attachment" in message.reason) == ("dead", True)


def test_a_job_keeps_its_words_and_its_file_once(provider, files, clock):
    """N11: fifty recipients, one content, one file; and retention frees them all."""
    queue_job(*MAIL[:3], [f"u{n}@example.org" for n in range(50)], attachments=[("a.pdf", b"%PDF", "application/pdf")])
    call_command("process_mail_jobs", verbosity=0)
    dispatch_slice()
    assert len(provider.accepted) == 50
    assert (Content.objects.count(), Attachment.objects.count(), len(files())) == (1, 1, 1)
    dispatch_slice()
    clock.advance(seconds=5)
    purge(days=0)
    assert files() == []
    for model in (Message, MessageJob, JobRecipients, Attempt, Content, ContentFile, Attachment):
        assert not model.objects.exists()


def test_a_file_that_is_still_needed_stays(provider, files, clock):
    pdf = [("a.pdf", b"%PDF", "application/pdf")]
    queue_mail(*MAIL, attachments=pdf)
    dispatch_slice()
    clock.advance(seconds=5)
    queue_mail(*MAIL, attachments=pdf, stream="bulk")
    purge(days=0)
    assert (Message.objects.count(), len(files())) == (1, 1)
    dispatch_slice()
    assert provider.accepted[1].attachments[0].content == b"%PDF"


def test_a_file_that_comes_back_gets_a_copy_of_its_own(provider, files):
    """Its old one may be about to be deleted by a purge that has just committed."""
    queue_mail(*MAIL, attachments=[("a.pdf", b"%PDF", "application/pdf")])
    ContentFile.objects.all().delete()
    Attachment.objects.all().delete()
    (old,) = files()
    queue_mail(*MAIL, attachments=[("a.pdf", b"%PDF", "application/pdf")])
    old.unlink()
    assert Attachment.objects.get().read() == b"%PDF"
