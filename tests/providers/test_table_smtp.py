"""Whose fault it is when SMTP goes wrong, step by step of the dialogue; a real server plays each row."""

from __future__ import annotations

import os
import re
import resource
import socket

import pytest
from django.core.mail import EmailMessage

from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection

from .judgements import judgement
from .scripted import Peer, ScriptedServer, closes, hangs, resets

pytestmark = pytest.mark.usefixtures("pipelining")

TLS, LOGIN = {"use_tls": True}, {"username": "ann", "password": "secret"}
LARGE = 8 * 1024 * 1024


def an_email(*to, size=6):
    return EmailMessage(
        "Hello", ("Hello" * 180 + "\n") * (size // 901 + 1), "news@example.org", to or ["ann@example.org"]
    )


@pytest.fixture
def sent(settings, quick_goodbye):
    """Send one mail to a server that does this, and say what came of it."""

    def send(at, *, features=(), tls_context=None, email=None, **options):
        with ScriptedServer(at, features=features, tls_context=tls_context) as server:
            settings.MAILERS = {"relay": server.mailer(**{"timeout": 0.5, **options})}
            return hand_over(email)

    return send


def hand_over(email=None):
    connection = Connection("relay")
    try:
        return connection.hand_over(email or an_email())
    finally:
        connection.close()


# What the server answers at a step, and whose fault that is
REPLIES = """
    GREETING  421 4.3.2 Too busy                                      unavailable
    GREETING  450 Later                                               unavailable
    GREETING  550 No                                                  unavailable
    GREETING  554 5.7.1 Your address is on a block list               misconfigured
    GREETING  what?                                                   unavailable
    EHLO      421 4.3.2 Closing                                       unavailable
    EHLO      450 Later                                               unavailable
    EHLO      550 No                                                  unavailable
    EHLO      501 5.5.4 Invalid name                                  misconfigured
    EHLO      504 5.5.2 I need a fully qualified name                 misconfigured
    STARTTLS  454 4.7.0 TLS not available                             unavailable
    STARTTLS  502 Not implemented                                     misconfigured
    AUTH      535 5.7.8 Wrong password                                misconfigured
    AUTH      534 5.7.9 Mechanism too weak                            misconfigured
    AUTH      538 5.7.11 Encryption required                          misconfigured
    AUTH      530 5.7.0 Must issue STARTTLS first                     misconfigured
    AUTH      454 4.7.0 Temporary failure                             unavailable
    AUTH      451 4.7.0 Try again                                     unavailable
    AUTH      432 4.7.12 Password transition needed                   unavailable
    AUTH      421 4.7.0 Too many attempts                             unavailable
    MAIL      421 4.3.2 Closing                                       unavailable
    MAIL      452 4.3.1 Disk full                                     unavailable
    MAIL      451 4.3.0 Later                                         deferred
    MAIL      450 4.7.1 Throttling failure                            throttled
    MAIL      550 5.4.5 Daily user sending limit exceeded             throttled
    MAIL      530 5.7.0 Authentication required                       misconfigured
    MAIL      550 5.7.1 Sender not verified                           misconfigured
    MAIL      550 No                                                  misconfigured
    MAIL      553 5.1.8 No such domain                                misconfigured
    MAIL      501 5.1.7 Bad sender address                            misconfigured
    MAIL      550 5.1.1 No such user                                  misconfigured
    MAIL      552 5.3.4 Larger than I take                            not here
    MAIL      503 5.5.1 Bad sequence                                  deferred, 2nd misconfigured
    MAIL      500 5.5.2 What?                                         deferred, 2nd misconfigured
    MAIL      501 5.5.4 What?                                         deferred, 2nd misconfigured
    MAIL      502 5.5.1 What?                                         deferred, 2nd misconfigured
    MAIL      504 5.5.4 What?                                         deferred, 2nd misconfigured
    MAIL      354 Go on                                               unavailable
    MAIL      what?                                                   unavailable
    RCPT      550 5.1.1 No such user                                  refused, bad address
    RCPT      550 5.1.2 No such host                                  refused, bad address
    RCPT      553 5.1.3 Bad syntax                                    refused, bad address
    RCPT      501 5.1.3 Bad syntax                                    refused, bad address
    RCPT      551 5.1.6 Moved                                         refused, bad address
    RCPT      556 5.1.10 Takes no mail                                refused, bad address
    RCPT      550 No such user                                        refused
    RCPT      550 5.2.1 Mailbox disabled                              refused
    RCPT      552 5.2.2 Mailbox full                                  refused
    RCPT      550 5.7.1 You look like spam                            refused
    RCPT      452 4.2.2 Mailbox full                                  deferred
    RCPT      450 4.2.1 Mailbox busy                                  deferred
    RCPT      450 4.2.0 Come back                                     deferred, greylisted
    RCPT      450 4.7.1 Come back                                     deferred, greylisted
    RCPT      451 4.7.1 Come back                                     deferred, greylisted
    RCPT      451 Greylisted                                          deferred, greylisted
    RCPT      452 4.5.3 Too many recipients                           deferred
    RCPT      454 4.7.1 Relay access denied                           deferred
    RCPT      421 4.7.0 Closing                                       unavailable
    RCPT      452 4.3.1 Disk full                                     unavailable
    RCPT      550 5.7.1 Relaying denied                               deferred, 2nd refused
    RCPT      554 5.7.1 Access denied                                 deferred, 2nd refused
    RCPT      550 5.7.1 Authentication required                       deferred, 2nd refused
    RCPT      550 Sender verify failed                                deferred, 2nd refused
    RCPT      501 Malformed address                                   deferred, 2nd refused
    RCPT      504 5.5.2 I need a fully qualified address              deferred, 2nd refused
    RCPT      503 5.5.1 Bad sequence                                  deferred, 2nd misconfigured
    RCPT      500 5.5.2 What?                                         deferred, 2nd misconfigured
    RCPT      502 5.5.1 What?                                         deferred, 2nd misconfigured
    RCPT      530 5.7.0 Authentication required                       misconfigured
    RCPT      553 5.1.8 No such domain                                misconfigured
    RCPT      550 5.7.26 Neither SPF nor DKIM                         misconfigured
    RCPT      550 5.7.25 No PTR record                                misconfigured
    RCPT      550 5.7.515 Does not meet the required level            misconfigured
    RCPT      what?                                                   unavailable
    DATA      451 4.3.0 Later                                         deferred
    DATA      421 4.3.2 Closing                                       unavailable
    DATA      554 5.5.1 No valid recipients                           not here
    DATA      550 5.7.1 No                                            not here
    DATA      503 5.5.1 Bad sequence                                  deferred, 2nd misconfigured
    DATA      250 Fine                                                unavailable
    DATA      what?                                                   unavailable
    DOT       250 2.0.0 Taken                                         accepted
    DOT       251 Taken                                               accepted
    DOT       421 4.3.0 Closing                                       unavailable
    DOT       452 4.3.1 Disk full                                     unavailable
    DOT       450 4.2.1 Later                                         deferred
    DOT       451 4.3.0 Later                                         deferred
    DOT       452 4.2.2 Mailbox full                                  deferred
    DOT       454 Later                                               deferred
    DOT       454 Throttling failure: Maximum sending rate exceeded.  throttled
    DOT       454 Throttling failure: Daily message quota exceeded.   throttled
    DOT       550 5.4.5 Daily user sending limit exceeded             throttled
    DOT       550 5.1.1 No such user                                  refused, bad address
    DOT       550 No                                                  refused
    DOT       553 No                                                  refused
    DOT       552 5.2.2 Mailbox full                                  refused
    DOT       552 5.3.4 Too large                                     not here
    DOT       554 5.6.0 Bad content                                   not here
    DOT       550 5.7.1 You look like spam                            not here
    DOT       554 5.7.1 You look like spam                            not here
    DOT       550 5.7.26 Neither SPF nor DKIM                         misconfigured
    DOT       550 5.7.515 Does not meet the required level            misconfigured
    DOT       530 5.7.0 Authentication required                       misconfigured
    DOT       554 Message rejected: Email address is not verified.    misconfigured
    DOT       550 Not from a verified Sender Identity                 misconfigured
    DOT       354 Go on                                               uncertain
    DOT       199 What                                                uncertain
    DOT       699 What                                                uncertain
    DOT       what?                                                   uncertain
"""


def row(line):
    step, rest = line.split(maxsplit=1)
    reply, words = re.split(r"  +", rest)
    return pytest.param(step, reply, words, id=f"{step} {reply}")


@pytest.mark.parametrize(("step", "reply", "words"), [row(line) for line in REPLIES.strip().splitlines()])
def test_a_reply(sent, step, reply, words):
    """F-S12, F-S16 to F-S24"""
    options = {"STARTTLS": TLS, "AUTH": LOGIN}.get(step, {})
    at = {step: reply, "TLS": None} | ({"HELO": reply} if step == "EHLO" else {})

    outcome = sent(at, features=["STARTTLS", "AUTH PLAIN"], **options)

    assert judgement(outcome) == words
    if reply[0].isdigit() and (step, reply[:3]) != ("DATA", "250"):
        assert outcome.phase == {"DOT": "await"}.get(step, step.lower())


def only_for(address, reply):
    """An action at RCPT: this reply for this address alone."""
    return lambda peer: reply if address in peer.server.received.splitlines()[-1].decode() else "250 yes"


@pytest.mark.parametrize(
    ("reply", "kind", "again_at_once"),
    [
        ("550 5.1.1 No such user", Kind.REFUSED, False),
        ("450 4.2.1 Mailbox busy", Kind.DEFERRED, False),
        ("452 4.5.3 Too many recipients", Kind.DEFERRED, True),
    ],
)
def test_an_address_that_is_refused_while_others_are_taken(sent, reply, kind, again_at_once):
    outcome = sent({"RCPT": only_for("bob@", reply)}, email=an_email("ann@example.org", "bob@example.org"))

    [(address, refusal)] = outcome.refusals.items()
    assert (judgement(outcome), address, refusal.kind, refusal.phase) == ("accepted", "bob@example.org", kind, "rcpt")
    assert (refusal.retry_after_seconds == 0) == again_at_once


@pytest.mark.parametrize(
    "act", [closes, hangs, resets, "250 " + "x" * 9000], ids=["closes", "hangs", "resets", "raves"]
)
@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("GREETING", "unavailable"),
        ("EHLO", "unavailable"),
        ("MAIL", "unavailable"),
        ("RCPT", "unavailable"),
        ("DATA", "unavailable"),
        ("DOT", "uncertain"),
        ("QUIT", "accepted"),
    ],
)
def test_a_connection_that_breaks(sent, step, act, words):
    """F-S02 to F-S07, F-S15"""
    assert judgement(sent({step: act, "HELO": act})) == words


@pytest.mark.parametrize("act", [closes, hangs, resets], ids=lambda act: act.__name__)
def test_a_connection_that_breaks_within_the_body_counts_against_the_provider_too(sent, act):
    """F-S05: without the final dot nobody keeps it. But whether this mail is to blame, nobody knows either."""
    outcome = sent({"BODY": lambda peer: [peer.read(100_000), act(peer)][1]}, email=an_email(size=LARGE))

    assert judgement(outcome) == "deferred, bad round"
    assert outcome.is_bad_round


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("552 5.3.4 Too large", "not here"),
        ("554 5.7.1 You look like spam", "not here"),
        ("421 4.3.2 Closing", "unavailable"),
        ("451 4.3.0 Later", "deferred"),
    ],
)
def test_a_reply_in_the_middle_of_the_body(sent, reply, words):
    def interrupt(peer):
        peer.read(100_000)
        peer.say(reply)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.sock.settimeout(0.1)  # reads on for a little, or the reply would be lost with the RST
        while peer.sock.recv(1 << 20):
            pass

    assert judgement(sent({"BODY": interrupt}, email=an_email(size=LARGE))) == words


def test_a_port_that_nobody_listens_at(settings):
    """F-S01"""
    with ScriptedServer() as server:
        settings.MAILERS = {"relay": server.mailer()}

    outcome = hand_over()

    assert (judgement(outcome), outcome.code) == ("unavailable", "ConnectionRefusedError")


def test_a_name_that_nobody_knows(settings):
    settings.MAILERS = {"relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "no.invalid"}}}
    with pytest.raises(socket.gaierror) as unresolved:
        socket.getaddrinfo("no.invalid", 25)
    says_no = unresolved.value.errno != socket.EAI_AGAIN  # a host without DNS can't know

    outcome = hand_over()

    assert judgement(outcome) == ("unavailable, ours after 10 min" if says_no else "unavailable")


def test_a_name_that_cannot_be_one(settings):
    settings.MAILERS = {"relay": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": {"host": "x..example"}}}

    assert judgement(hand_over()) == "misconfigured"


@pytest.fixture
def no_more_files():
    """This process may open no more files or sockets: `with no_more_files(): ...`"""

    class NoMoreFiles:
        def __enter__(self):
            self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            spare = os.dup(0)
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare, self.limits[1]))

        def __exit__(self, *exc_info):
            resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)

    return NoMoreFiles


def test_a_host_without_sockets_to_spare(settings, no_more_files):
    with ScriptedServer() as server:
        settings.MAILERS = {"relay": server.mailer()}
        hand_over()  # what is imported and started at first use has to open files itself

        with no_more_files():
            outcome = hand_over()
        again = hand_over()

    assert (judgement(outcome), outcome.is_bad_round, judgement(again)) == ("local", False, "accepted")


@pytest.mark.parametrize(
    ("options", "features"),
    [(TLS, ["AUTH PLAIN"]), (LOGIN, []), (LOGIN, ["AUTH GSSAPI"])],
    ids=["no STARTTLS", "no AUTH", "no AUTH that both know"],
)
def test_what_we_need_and_the_server_does_not_offer(sent, options, features):
    """F-S24"""
    assert judgement(sent({}, features=features, **options)) == "misconfigured"


def speaks_in_clear(peer):
    peer.say("550 I speak no TLS")
    hangs(peer)


def after_hello(act):
    """An action: do this when the client has begun its handshake, and hang up."""

    def do(peer):
        peer.sock.recv(1 << 16)
        act(peer)
        closes(peer)

    return do


@pytest.mark.parametrize("step", ["TLS", "CONNECT"], ids=["STARTTLS", "TLS"])
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (closes, "unavailable, ours once open"),
        (speaks_in_clear, "unavailable, ours once open"),
        (resets, "unavailable"),  # that has nothing to do with TLS
        (hangs, "unavailable"),
    ],
)
def test_a_handshake_that_fails(sent, step, act, words):
    """F-S25: it may be for now; while it lasts, the settings may be wrong."""
    options = TLS if step == "TLS" else {"use_ssl": True}

    assert judgement(sent({step: after_hello(act)}, features=["STARTTLS"], **options)) == words


@pytest.mark.parametrize("options", [TLS, {"use_ssl": True}], ids=["STARTTLS", "TLS"])
@pytest.mark.parametrize(
    ("name", "expired", "trusted", "words"),
    [
        ("localhost", False, True, "accepted"),
        ("localhost", False, False, "misconfigured"),
        ("localhost", True, True, "misconfigured"),
        ("other.example", False, True, "misconfigured"),
    ],
    ids=["good", "nobody's", "expired", "of another host"],
)
def test_a_certificate(sent, certificate, monkeypatch, options, name, expired, trusted, words):
    """F-S24"""
    path, tls_context = certificate(name, expired=expired)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    at = {} if options is TLS else {"CONNECT": Peer.start_tls}

    outcome = sent(at, tls_context=tls_context, features=["STARTTLS"], host="localhost", **options)

    assert judgement(outcome) == words


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_of_our_own_that_cannot_be_read(sent, tmp_path, content):
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_text(content)

    assert judgement(sent({}, features=["STARTTLS"], ssl_certfile=str(path), **TLS)) == "misconfigured"
