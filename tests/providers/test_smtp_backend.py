"""SMTPBackend: Django's SMTP backend, which also says how far it got."""

from __future__ import annotations

import hashlib
import smtplib
import socket
import threading
from contextlib import contextmanager

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from mailengine.backends.smtp import Phase, SMTPBackend, phase_of, render
from mailengine.compat import get_mailer
from mailengine.testing.smtp_server import HANG_UP, SILENCE, SMTPServer


@pytest.fixture
def server():
    with SMTPServer() as server:
        yield server


@pytest.fixture
def backend(server, settings):
    settings.MAILERS = {"relay": server.mailer(timeout=1)}
    backend = get_mailer("relay")
    yield backend
    backend.close()


def an_email(*to, **kwargs):
    return EmailMessage("Hello", kwargs.pop("body", "Hello."), "news@example.org", to or ["ann@example.org"], **kwargs)


def answer_at(verb, reply):
    return lambda step: reply if step.verb == verb else None


def test_mail_is_sent_to_everybody_it_names(server, backend):
    email = an_email("Ann <ann@example.org>", cc=["bob@example.org"], bcc=["eve@example.org"])

    assert backend.send_messages([email]) == 1
    (accepted,) = server.accepted
    assert accepted.sender == "news@example.org"
    assert accepted.recipients == ("ann@example.org", "bob@example.org", "eve@example.org")
    assert accepted.message["Subject"] == "Hello"
    assert "eve" not in accepted.content.decode()


def test_an_address_named_twice_gets_one_copy(server, backend):
    backend.send_messages([an_email("ann@example.org", cc=["Ann <ann@example.org>"])])

    assert server.accepted[0].recipients == ("ann@example.org",)


def test_lines_that_begin_with_a_dot_arrive_as_they_were(server, backend):
    backend.send_messages([an_email(body="one\n.\n..two\n.three")])

    assert server.accepted[0].message.get_content().splitlines() == ["one", ".", "..two", ".three"]


def test_the_digest_is_that_of_the_bytes_the_server_got(server, backend):
    email = an_email(body="one\n.two")

    backend.send_messages([email])

    assert email.mailengine_sha256 == hashlib.sha256(server.accepted[0].content).digest()


def test_mail_is_seven_bit_clean_whatever_is_in_it(server, backend):
    """F-S29"""
    email = EmailMultiAlternatives("Grüße", "Grüße", "Zoë <zoe@example.org>", ["ann@example.org"])
    email.attach_alternative("<p>Grüße</p>", "text/html")
    email.attach("grüße.txt", "Grüße", "text/plain")

    backend.send_messages([email])

    (accepted,) = server.accepted
    assert accepted.content.isascii()
    assert accepted.message.get_body(("plain",)).get_content().strip() == "Grüße"
    assert accepted.message.get_body(("html",)).get_content().strip() == "<p>Grüße</p>"
    assert next(accepted.message.iter_attachments()).get_content().strip() == "Grüße"


def test_a_domain_that_is_not_ascii_is_punycode_on_the_wire(server, backend):
    """F-X08"""
    backend.send_messages([an_email("ann@bücher.example")])

    assert server.accepted[0].recipients == ("ann@xn--bcher-kva.example",)


@pytest.mark.parametrize("address", ["jörg@example.org", "ann@example.org\nbcc: eve@example.org", "ann@", ""])
def test_an_address_no_envelope_can_carry_is_refused_before_connecting(server, backend, address):
    """F-X09, F-X10"""
    with pytest.raises(ValueError, match="address"):
        backend.send_messages([an_email("bob@example.org", address or "<>")])
    assert server.connection_count == 0


def test_mail_that_cannot_be_rendered_costs_no_connection(server, backend):
    with pytest.raises(ValueError, match=r"(?i)newline|linefeed"):
        backend.send_messages([an_email(headers={"X-Forged": "a\nBcc: eve@example.org"})])
    assert server.connection_count == 0


def test_partial_refusals_are_on_the_email(server, backend):
    server.replies["gone@bücher.example"] = server.replies["gone@xn--bcher-kva.example"] = "550 5.1.1 No such user"
    email = an_email("ann@example.org", "Gone <gone@bücher.example>")

    assert backend.send_messages([email]) == 1
    assert email.mailengine_refusals == {"gone@bücher.example": (550, b"5.1.1 No such user")}


@pytest.mark.parametrize(
    ("verb", "phase"), [("MAIL", Phase.MAIL), ("RCPT", Phase.RCPT), ("DATA", Phase.DATA), ("DOT", Phase.AWAIT)]
)
@pytest.mark.parametrize("reply", [HANG_UP, SILENCE])
def test_a_connection_that_breaks_says_in_which_phase(server, backend, verb, phase, reply):
    """F-S03, F-S04, F-S07"""
    server.answer = answer_at(verb, reply)

    with pytest.raises(smtplib.SMTPServerDisconnected) as caught:
        backend.send_messages([an_email()])
    assert phase_of(caught.value) is phase
    assert len(server.accepted) == (phase is Phase.AWAIT)


def test_any_2xx_to_the_final_dot_is_a_yes(server, backend):
    server.answer = answer_at("DOT", "251 Taken")

    assert backend.send_messages([an_email()]) == 1


def test_a_server_that_vanishes_after_its_yes_has_the_mail(backend, server):
    """F-S15"""
    backend.open()

    assert backend.send_messages([an_email()]) == 1
    server.down()
    backend.close()


def test_nobody_listening_is_a_failure_to_connect(server, backend):
    """F-S01"""
    server.down()

    with pytest.raises(ConnectionRefusedError) as caught:
        backend.send_messages([an_email()])
    assert phase_of(caught.value) is Phase.CONNECT


def test_a_wrong_password_is_a_failure_to_log_in(settings):
    with SMTPServer(credentials=("ann", "right")) as server:
        settings.MAILERS = {"relay": server.mailer(username="ann", password="wrong")}
        backend = get_mailer("relay")
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            backend.open()
        backend.close()
    assert phase_of(caught.value) is Phase.AUTH


def test_starttls_that_is_not_offered_is_not_done_without(server, settings):
    """F-S24"""
    settings.MAILERS = {"relay": server.mailer(use_tls=True, username="ann", password="secret")}
    backend = get_mailer("relay")
    with pytest.raises(smtplib.SMTPNotSupportedError) as caught:
        backend.open()
    backend.close()
    assert phase_of(caught.value) is Phase.STARTTLS


@contextmanager
def one_conversation(*replies, then):
    """A server for one connection: says each reply when it is its turn, then does `then(connection)` after DATA."""
    listener = socket.create_server(("127.0.0.1", 0))

    def converse():
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            for reply in replies:
                connection.sendall(reply + b"\r\n")
                lines.readline()
            then(connection)

    thread = threading.Thread(target=converse)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join()
        listener.close()


LARGE = ("x" * 900 + "\n") * 22_000  # more than the buffers of both kernels hold
UNTIL_DATA = (b"220 hello", b"250 hello", b"250 sender", b"250 recipient")


def send_to(port, settings, email):
    settings.MAILERS = {
        "relay": {
            "BACKEND": "mailengine.backends.SMTPBackend",
            "OPTIONS": {"host": "127.0.0.1", "port": port, "timeout": 2},
        }
    }
    return get_mailer("relay").send_messages([email])


def hang_up_hard(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_a_connection_that_breaks_within_the_body_leaves_no_doubt(settings):
    """F-S05"""

    def refuse_to_listen(connection):
        connection.sendall(b"354 go on\r\n")
        connection.recv(10)
        hang_up_hard(connection)

    with (
        one_conversation(*UNTIL_DATA, then=refuse_to_listen) as port,
        pytest.raises(smtplib.SMTPServerDisconnected) as caught,
    ):
        send_to(port, settings, an_email(body=LARGE))
    assert phase_of(caught.value) is Phase.BODY


def test_a_no_that_comes_before_the_end_of_the_body_is_heard(settings):
    def refuse_early(connection):
        connection.sendall(b"354 go on\r\n")
        connection.recv(10)
        connection.sendall(b"552 5.3.4 Too big\r\n")
        connection.shutdown(socket.SHUT_WR)
        threading.Event().wait(0.3)  # for the reply to get through before what follows it
        hang_up_hard(connection)

    with one_conversation(*UNTIL_DATA, then=refuse_early) as port, pytest.raises(smtplib.SMTPDataError) as caught:
        send_to(port, settings, an_email(body=LARGE))
    assert (caught.value.smtp_code, phase_of(caught.value)) == (552, Phase.BODY)


def test_one_connection_serves_many_mails(server, backend):
    """C07"""
    assert backend.send_messages([an_email() for _ in range(20)]) == 20
    assert server.connection_count == 1


def test_fail_silently_counts_what_was_sent(server, settings):
    server.replies["gone@example.org"] = "550 5.1.1 No such user"
    settings.MAILERS = {"relay": server.mailer(fail_silently=True)}

    assert get_mailer("relay").send_messages([an_email("gone@example.org"), an_email()]) == 1
    server.down()
    assert get_mailer("relay").send_messages([an_email()]) == 0


def test_mail_to_nobody_is_not_sent(server, backend):
    email = an_email()
    email.to = []

    assert backend.send_messages([email]) == 0
    assert backend.send_messages([]) == 0
    assert server.connection_count == 0


@pytest.mark.parametrize(("timeout", "expected"), [(None, 40), (7, 7), (500, 40)])
def test_no_wait_is_longer_than_the_deadline_of_a_send(settings, timeout, expected):
    settings.MAILENGINE = {"SEND_DEADLINE_SECONDS": 40}
    settings.MAILERS = {"relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "h"}}}
    settings.MAILERS["relay"]["OPTIONS"]["timeout"] = timeout

    assert get_mailer("relay").timeout == expected


@pytest.mark.skipif(django.VERSION >= (6, 1), reason="from Django 6.1 on every backend is built from MAILERS")
class TestBeforeDjango61:
    def test_built_without_options_it_reads_them_from_mailers(self, settings):
        options = {"host": "mx.example.org", "use_tls": True, "username": "ann"}
        settings.MAILERS = {
            "default": {"BACKEND": "mailengine.backends.EmailBackend"},
            "relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options},
        }
        backend = SMTPBackend()

        assert (backend.alias, backend.host, backend.port) == ("relay", "mx.example.org", 587)

    def test_credentials_of_another_server_are_not_used(self, settings):
        settings.EMAIL_HOST_USER, settings.EMAIL_HOST_PASSWORD = "root", "secret"

        backend = SMTPBackend(host="mx.example.org")

        assert not backend.username
        assert not backend.password

    def test_a_project_without_mailers_still_has_its_email_host(self, settings):
        settings.MAILERS = {}
        settings.EMAIL_HOST = "mx.example.org"

        assert SMTPBackend().host == "mx.example.org"


def test_rendering_twice_gives_the_same_bytes():
    email = an_email(body="Grüße", headers={"Message-ID": "<1@example.org>", "Date": "Sun, 22 Nov 2026 10:00:00 +0000"})

    assert render(email) == render(email)
