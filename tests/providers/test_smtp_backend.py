"""SMTPBackend: Django's SMTP backend, which also says how far it got."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import smtplib
import subprocess
import sys
import time

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils.translation import gettext_lazy

from mailengine.backends.dialogue import Phase, phase_of
from mailengine.backends.smtp import SMTPBackend
from mailengine.backends.wire import render
from mailengine.compat import get_mailer
from mailengine.deadline import Deadline
from mailengine.deadline import _watchdog as watchdog
from mailengine.testing.smtp_server import HANG_UP, SILENCE, SMTPServer

from .scripted import Peer, ScriptedServer, closes, drips, hangs, resets

pytestmark = pytest.mark.usefixtures("pipelining")


@pytest.fixture
def server(pipelining):
    with SMTPServer(pipelining=pipelining) as server:
        yield server


@pytest.fixture
def backend(server, settings):
    settings.MAILERS = {"relay": server.mailer(timeout=0.5)}
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


def test_an_address_may_be_text_that_is_translated_later(server, backend):
    email = an_email(gettext_lazy("ann@example.org"))
    email.from_email = gettext_lazy("News <news@example.org>")

    assert backend.send_messages([email]) == 1
    assert (server.accepted[0].sender, server.accepted[0].recipients) == ("news@example.org", ("ann@example.org",))


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


LARGE = ("x" * 900 + "\n") * 22_000  # more than the buffers of both kernels hold


def send_to(server, settings, email=None, **options):
    settings.MAILERS = {"relay": server.mailer(**options)}
    return get_mailer("relay").send_messages([email or an_email()])


def test_a_connection_that_breaks_within_the_body_leaves_no_doubt(settings):
    """F-S05"""

    def breaks(peer):
        peer.read(10_000)
        resets(peer)

    with (
        ScriptedServer({"BODY": breaks}) as server,
        pytest.raises(smtplib.SMTPServerDisconnected, match="within the body") as caught,
    ):
        send_to(server, settings, an_email(body=LARGE))
    assert phase_of(caught.value) is Phase.BODY


@pytest.mark.parametrize("reply", ["552 5.3.4 Too big", "421 4.3.2 Going down"])
def test_a_no_that_comes_before_the_end_of_the_body_is_heard(settings, reply):
    """F-S16"""

    def refuses_early(peer):
        peer.read(10_000)
        peer.say(reply)
        time.sleep(0.3)  # for the reply to get through before what follows it
        resets(peer)

    with ScriptedServer({"BODY": refuses_early}) as server, pytest.raises(smtplib.SMTPDataError) as caught:
        send_to(server, settings, an_email(body=LARGE))
    assert (caught.value.smtp_code, phase_of(caught.value)) == (int(reply[:3]), Phase.BODY)


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


@pytest.fixture
def short_deadline(settings):
    """A send may take a moment; one wait for the server, half a minute."""
    settings.MAILENGINE = {"SEND_DEADLINE_SECONDS": 0.3}


STEPS = {
    "GREETING": (Phase.GREETING, b"220 hello"),
    "EHLO": (Phase.EHLO, b"250-hello"),
    "MAIL": (Phase.MAIL, b"250 yes"),
    "RCPT": (Phase.RCPT, b"250 yes"),
    "DATA": (Phase.DATA, b"354 go on"),
    "DOT": (Phase.AWAIT, b"250 taken"),
}


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["hangs", "drips"])
def test_a_send_is_over_at_its_deadline_whatever_the_server_does(settings, step, how):
    """F-S02, F-S03, F-S10"""
    phase, reply = STEPS[step]
    with (
        ScriptedServer({step: hangs if how == "hangs" else drips(reply)}) as server,
        pytest.raises(TimeoutError, match=rf"^not done within 0\.3 s; it got as far as: {phase.value}$") as caught,
    ):
        send_to(server, settings)
    assert phase_of(caught.value) is phase
    assert len(server.accepted) == (phase is Phase.AWAIT)


@pytest.mark.usefixtures("short_deadline")
def test_a_server_that_stops_reading_ends_in_the_body_at_the_deadline(settings):
    """F-S03"""
    with ScriptedServer({"BODY": hangs}) as server, pytest.raises(TimeoutError, match="as far as: body") as caught:
        send_to(server, settings, an_email(body=LARGE))
    assert phase_of(caught.value) is Phase.BODY


@pytest.mark.usefixtures("short_deadline")
def test_a_no_that_was_said_before_the_deadline_is_heard_at_it(settings):
    def refuses_and_stops(peer):
        peer.say("552 5.3.4 Too big")
        hangs(peer)

    with ScriptedServer({"BODY": refuses_and_stops}) as server, pytest.raises(smtplib.SMTPDataError) as caught:
        send_to(server, settings, an_email(body=LARGE))
    assert caught.value.smtp_code == 552


@pytest.mark.usefixtures("short_deadline")
def test_each_mail_has_a_deadline_of_its_own(settings):
    with SMTPServer() as server:
        server.delay_seconds = 0.1
        settings.MAILERS = {"relay": server.mailer()}

        assert get_mailer("relay").send_messages([an_email() for _ in range(4)]) == 4
    assert server.connection_count == 1


def test_the_deadline_of_the_caller_counts_when_it_is_sooner(settings):
    with (
        ScriptedServer({"DOT": drips(b"250 taken")}) as server,
        Deadline(time.monotonic() + 0.3),
        pytest.raises(TimeoutError, match=r"not done within 0\.3 s"),
    ):
        send_to(server, settings)


@pytest.mark.usefixtures("short_deadline")
def test_a_backend_kept_open_goes_on_by_a_new_connection_after_a_deadline(settings):
    def drips_at_first(peer):
        return drips(b"250 yes")(peer) if peer.number == 1 else "250 yes"

    with ScriptedServer({"MAIL": drips_at_first}) as server:
        settings.MAILERS = {"relay": server.mailer()}
        backend = get_mailer("relay")
        backend.open()
        with pytest.raises(TimeoutError):
            backend.send_messages([an_email()])

        assert backend.send_messages([an_email()]) == backend.send_messages([an_email()]) == 1
        assert (len(server.accepted), server.connection_count) == (2, 2)
        backend.close()


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize("step", ["GREETING", "RCPT"])
def test_a_deadline_passes_silently_where_failures_do(settings, step):
    with ScriptedServer({step: hangs}) as server:
        assert send_to(server, settings, fail_silently=True) == 0


@pytest.fixture
def trusted(certificate, monkeypatch):
    """The server's side of TLS, with a certificate that clients trust."""
    path, tls_context = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return tls_context


@pytest.mark.parametrize("options", [{"use_tls": True}, {"use_ssl": True}])
def test_mail_goes_over_tls(settings, trusted, options):
    at = {"CONNECT": Peer.start_tls} if "use_ssl" in options else {}
    with ScriptedServer(at, features=["STARTTLS"], tls_context=trusted) as server:
        assert send_to(server, settings, host="localhost", **options) == 1
    assert b"Subject: Hello" in server.accepted[0]


@pytest.mark.usefixtures("short_deadline")
@pytest.mark.parametrize(
    ("step", "action", "options", "phase"),
    [
        ("TLS", hangs, {"use_tls": True}, Phase.STARTTLS),
        ("TLS", drips(b"\x16\x03\x03\x40\x00\x02"), {"use_tls": True}, Phase.STARTTLS),
        ("CONNECT", hangs, {"use_ssl": True}, Phase.CONNECT),
        ("CONNECT", drips(b"\x16\x03\x03\x40\x00\x02"), {"use_ssl": True}, Phase.CONNECT),
        ("AUTH", drips(b"235 welcome"), {"use_tls": True, "username": "ann", "password": "secret"}, Phase.AUTH),
        ("BODY", hangs, {"use_tls": True}, Phase.BODY),
        ("DOT", drips(b"250 taken"), {"use_tls": True}, Phase.AWAIT),
    ],
)
def test_a_deadline_ends_it_over_tls_too(settings, trusted, step, action, options, phase):
    """F-S10"""
    with (
        ScriptedServer({step: action}, features=["STARTTLS", "AUTH PLAIN"], tls_context=trusted) as server,
        pytest.raises(TimeoutError, match="not done within") as caught,
    ):
        send_to(server, settings, an_email(body=LARGE if step == "BODY" else ""), host="localhost", **options)
    assert phase_of(caught.value) is phase


SENDS = """
import sys, time
from django.conf import settings
from django.core.mail import EmailMessage
import django
settings.configure(MAILENGINE={"SEND_DEADLINE_SECONDS": 0.5}, DEFAULT_CHARSET="utf-8")
django.setup()
from mailengine.backends.dialogue import phase_of
from mailengine.backends.smtp import SMTPBackend
try:
    SMTPBackend(host="127.0.0.1", port=int(sys.argv[1]), timeout=30).send_messages(
        [EmailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"])]
    )
except TimeoutError as error:
    print(phase_of(error).value)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP on this system")
@pytest.mark.parametrize(("step", "reply", "phase"), [("EHLO", "250 hello", "mail"), ("DATA", "354 go on", "body")])
def test_a_process_that_was_frozen_does_not_go_on_when_its_time_is_over(step, reply, phase):
    """F-P14: somebody else may have sent the mail by now."""
    process = None

    def freezes_it(_peer):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.8)
        return reply

    def thaws_it(peer):
        action = freezes_it(peer)
        peer.say(action)  # it lies there to be read when the process wakes up
        os.kill(process.pid, signal.SIGCONT)

    with ScriptedServer({step: thaws_it}) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", SENDS, str(server.port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out, err = process.communicate(timeout=60)

    assert out.strip() == phase, err
    assert b"\r\n.\r\n" not in server.received
    assert server.accepted == []


@pytest.mark.parametrize(
    ("step", "reply", "phase", "unsaid"),
    [("EHLO", "250 hello", Phase.MAIL, b"MAIL"), ("DATA", "354 go on", Phase.BODY, b"\r\n.\r\n")],
)
def test_a_sender_that_wakes_up_before_the_watchdog_looks_at_the_time_itself(settings, step, reply, phase, unsaid):
    """F-P14"""

    def answers_late(peer):
        with watchdog._changed:  # which can do nothing meanwhile
            time.sleep(0.7)
            peer.say(reply)
            peer.sock.settimeout(0.5)
            peer.read_until(b"\r\n.\r\n")

    with (
        ScriptedServer({step: answers_late}) as server,
        Deadline(time.monotonic() + 0.5),
        pytest.raises(TimeoutError) as caught,
    ):
        send_to(server, settings)
    assert phase_of(caught.value) is phase
    assert unsaid not in server.received.upper()


TOO_LONG = "250 " + "x" * 20_000


@pytest.mark.usefixtures("quick_goodbye")
@pytest.mark.parametrize(
    "goodbye",
    ["421 4.3.2 Going down", TOO_LONG, "what?", "500 What?", hangs, closes, resets, drips(b"221 bye")],
)
def test_whatever_becomes_of_the_goodbye_mail_taken_is_sent(settings, goodbye):
    """F-S15"""
    began_at = time.monotonic()
    with ScriptedServer({"QUIT": goodbye}) as server:
        assert send_to(server, settings) == 1

    assert len(server.accepted) == 1
    assert time.monotonic() - began_at < 10  # a drip goes on for longer


@pytest.mark.usefixtures("quick_goodbye")
@pytest.mark.parametrize(
    "answer", ["421 4.3.2 Going down", TOO_LONG, "what?", hangs, closes, resets, drips(b"250 yes")]
)
def test_a_refusal_that_was_read_stays_one_whatever_follows(settings, answer):
    """F-S15"""

    began_at = time.monotonic()

    def refuses_ann(_peer):
        return "550 5.1.1 No such user" if b"ann@" in server.received.splitlines()[-1] else "250 yes"

    with ScriptedServer({"RCPT": refuses_ann, "RSET": answer}) as server:
        settings.MAILERS = {"relay": server.mailer()}
        backend = get_mailer("relay")
        backend.open()
        with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
            backend.send_messages([an_email("ann@example.org")])
        backend.close()

    assert caught.value.recipients == {"ann@example.org": (550, b"5.1.1 No such user")}
    assert time.monotonic() - began_at < 10  # a drip goes on for longer


def test_a_yes_to_mail_is_any_2xx(settings):
    with ScriptedServer({"MAIL": "251 yes", "RCPT": "252 yes"}) as server:
        assert send_to(server, settings) == 1


def test_a_yes_to_data_without_its_go_on_sends_nothing(settings):
    """The server is a reply behind; what it says next would be taken for an answer to the mail."""
    with ScriptedServer({"DATA": "250 yes"}) as server, pytest.raises(smtplib.SMTPServerDisconnected) as caught:
        send_to(server, settings)
    assert phase_of(caught.value) is Phase.DATA
    assert b"Subject" not in server.received


class GreyServer(ScriptedServer):
    """Refuses DATA with `reply` for mail to grey@; its transaction stays open then, until RSET or a new connection."""

    def __init__(self, reply):
        super().__init__()
        self.reply = reply
        self.is_within: dict[int, bool] = {}

    def answer(self, verb, peer):
        is_nested = verb == "MAIL" and self.is_within.get(peer.number)
        is_refused = verb == "DATA" and b"grey@" in self.received.splitlines()[-2]
        if verb in {"MAIL", "RSET"} or (verb == "DATA" and not is_refused):
            self.is_within[peer.number] = verb == "MAIL"
        if is_nested or is_refused:
            peer.say("503 5.5.1 Nested MAIL" if is_nested else self.reply)
        else:
            super().answer(verb, peer)


@pytest.mark.parametrize(
    ("reply", "connection_count"),
    [("450 4.7.1 Try later", 1), ("554 5.5.1 No", 1), ("421 4.3.2 Going down", 2), ("150 What?", 2)],
)
def test_a_no_to_data_leaves_nothing_behind_for_the_next_mail(settings, reply, connection_count):
    """F-S15: the transaction is still open then, and a MAIL within it is out of order."""
    with GreyServer(reply) as server:
        settings.MAILERS = {"relay": server.mailer()}
        backend = get_mailer("relay")
        backend.open()
        with pytest.raises(smtplib.SMTPDataError) as caught:
            backend.send_messages([an_email("grey@example.org")])
        backend.send_messages([an_email("ann@example.org")])
        backend.close()

    assert f"{caught.value.smtp_code} {caught.value.smtp_error.decode()}" == reply
    assert phase_of(caught.value) is Phase.DATA
    assert (len(server.accepted), server.connection_count) == (1, connection_count)


@pytest.mark.parametrize("refusal", ["500 What?", "502 5.5.1 Not implemented"])
def test_a_server_of_before_esmtp_gets_seven_bits_and_no_parameters(settings, refusal):
    """F-S29"""
    email = EmailMultiAlternatives("Grüße", "Grüße" * 300, "Zoë <zoe@bücher.example>", ["ann@example.org"])
    email.attach_alternative("<p>Grüße</p>", "text/html")
    with ScriptedServer({"EHLO": refusal}) as server:
        assert send_to(server, settings, email) == 1

    assert server.received.isascii()
    lines = server.received.splitlines()
    assert lines[1].upper().startswith(b"HELO ")
    assert lines[2].upper() == b"MAIL FROM:<ZOE@XN--BCHER-KVA.EXAMPLE>"
    assert max(map(len, lines)) <= 998


def test_a_server_that_offers_neither_8bitmime_nor_smtputf8_is_asked_for_neither(settings):
    """F-S29"""
    with ScriptedServer(features=["SIZE 1000000"]) as server:
        assert send_to(server, settings, an_email(body="Grüße")) == 1

    (mail,) = [line for line in server.received.splitlines() if line.upper().startswith(b"MAIL")]
    assert b"BODY" not in mail.upper()
    assert b"SMTPUTF8" not in mail.upper()
    assert server.received.isascii()


@pytest.mark.parametrize(("step", "half", "phase"), [("RCPT", b"550 5.", Phase.RCPT), ("DOT", b"25", Phase.AWAIT)])
def test_half_a_line_is_no_answer(settings, step, half, phase):
    """F-S12: smtplib takes what came before the end of a connection for a line."""

    def breaks_off(peer):
        peer.say(half)
        closes(peer)

    with ScriptedServer({step: breaks_off}) as server, pytest.raises(smtplib.SMTPServerDisconnected) as caught:
        send_to(server, settings)
    assert phase_of(caught.value) is phase


def secrets(password):
    """The forms in which a password may be on the wire."""
    return [form.rstrip(b"=") for form in (password.encode(), *encoded(password), *encoded(f"\0ann\0{password}"))]


def encoded(text):
    return [base64.b64encode(text.encode())]


@pytest.mark.parametrize("fault", ["not offered", "refused", "expired", "of another host", "not trusted"])
def test_without_trustworthy_tls_the_password_is_never_sent(settings, certificate, monkeypatch, fault):
    """F-S24"""
    name = "other.example" if fault == "of another host" else "localhost"
    path, tls_context = certificate(name, expired=fault == "expired")
    if fault != "not trusted":
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    features = ["AUTH PLAIN LOGIN"] if fault == "not offered" else ["STARTTLS", "AUTH PLAIN LOGIN"]
    at = {"STARTTLS": "454 4.7.0 Not now"} if fault == "refused" else {}
    with (
        ScriptedServer(at, features=features, tls_context=tls_context) as server,
        pytest.raises(OSError, match=r"STARTTLS|454|certificate") as caught,
    ):
        send_to(server, settings, host="localhost", use_tls=True, username="ann", password="correct horse")

    assert phase_of(caught.value) is Phase.STARTTLS
    assert b"AUTH" not in server.received.upper()
    assert not any(form in server.received for form in secrets("correct horse"))


def test_the_password_is_seen_by_a_server_that_is_trusted(settings, trusted):
    """So that the test above can fail."""
    with ScriptedServer(features=["STARTTLS", "AUTH PLAIN"], tls_context=trusted) as server:
        send_to(server, settings, host="localhost", use_tls=True, username="ann", password="correct horse")

    assert any(form in server.received for form in secrets("correct horse"))


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
