"""The envelope in one write, for servers that offer PIPELINING (RFC 2920), and finished bytes as they are.

That what comes of a mail is the same with and without it is asserted where the cases are: each test that uses the
fixture `pipelining` runs both ways.
"""

from __future__ import annotations

import hashlib
import re

import pytest
from django.core.mail import EmailMessage
from hypothesis import given
from hypothesis import settings as configured
from hypothesis import strategies as st

from mailengine.backends import dialogue, smtp
from mailengine.backends.wire import WireMail
from mailengine.outcomes import Kind
from mailengine.providers.connection import Connection
from mailengine.testing.smtp_server import SMTPServer

from .judgements import judgement
from .scripted import ScriptedServer, hangs, resets

OFFERED = ["PIPELINING"]


def an_email(*to, **kwargs):
    return EmailMessage("Hello", kwargs.pop("body", "Hello."), "news@example.org", to or ["ann@example.org"], **kwargs)


@pytest.fixture
def connected(settings, quick_goodbye):
    """A function that gives a connection to this server."""
    connections = []

    def connect(server, **options):
        settings.MAILERS = {"relay": server.mailer(**{"timeout": 0.5, **options})}
        connections.append(Connection("relay"))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()


def heard_unasked(peer, *, within=0.3):
    """What the client says while it gets no answer."""
    heard = b""
    peer.sock.settimeout(within)
    try:
        while some := peer.sock.recv(65_536):
            heard += some
    except TimeoutError:
        peer.sock.settimeout(15)
    return heard


def test_the_envelope_comes_at_once_where_the_server_takes_that(connected):
    def answers_late(peer):
        rest.append(heard_unasked(peer))
        peer.say("250 yes\r\n250 yes\r\n550 no such user\r\n354 go on")
        peer.server.take_body(peer)

    rest = []
    with ScriptedServer({"MAIL": answers_late}, features=OFFERED) as server:
        outcome = connected(server, timeout=5).hand_over(an_email("ann@example.org", "bob@example.org"))

    assert rest == [b"RCPT TO:<ann@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"]
    assert (outcome.kind, set(outcome.refusals)) == (Kind.ACCEPTED, {"bob@example.org"})


def test_a_server_that_does_not_offer_it_sees_one_command_at_a_time(connected):
    def answers_late(peer):
        rest.append(heard_unasked(peer))
        return "354 go on" if len(rest) == 3 else "250 yes"

    rest = []
    with ScriptedServer(dict.fromkeys(["MAIL", "RCPT", "DATA"], answers_late), features=["SIZE"]) as server:
        outcome = connected(server, timeout=5).hand_over(an_email())

    assert (outcome.kind, rest) == (Kind.ACCEPTED, [b"", b"", b""])


def test_what_was_offered_before_tls_counts_no_more(connected, certificate, monkeypatch):
    path, tls_context = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    rest, seen = [], []

    def offers_it_in_clear(peer):
        seen.append(peer)
        return "250 hello" if len(seen) == 2 else "250-hello\r\n250-PIPELINING\r\n250 STARTTLS"

    def answers_late(peer):
        rest.append(heard_unasked(peer))
        return "250 yes"

    with ScriptedServer({"EHLO": offers_it_in_clear, "MAIL": answers_late}, tls_context=tls_context) as server:
        outcome = connected(server, host="localhost", use_tls=True, timeout=5).hand_over(an_email())

    assert (outcome.kind, rest) == (Kind.ACCEPTED, [b""])


def test_of_a_large_envelope_only_so_much_is_said_before_its_replies_are_read(connected):
    """Both sides might wait for the other to read, else."""

    def answers_late(peer):
        ahead.append(heard_unasked(peer))
        for _ in ahead[0].splitlines():
            peer.say("250 yes")
        return "250 yes"

    ahead = []
    everybody = [f"reader{number:04}@example.org" for number in range(500)]
    with ScriptedServer({"MAIL": answers_late}, features=OFFERED) as server:
        outcome = connected(server, timeout=5).hand_over(an_email(*everybody))

    assert (outcome.kind, outcome.refusals) == (Kind.ACCEPTED, {})
    assert 1_000 < len(ahead[0]) < 6_000


@pytest.mark.parametrize(
    ("at", "kind"),
    [
        ({"MAIL": "550 5.7.1 Not you"}, Kind.MISCONFIGURED),
        ({"MAIL": "451 4.3.0 Later"}, Kind.DEFERRED),
        ({"RCPT": "550 5.1.1 No such user"}, Kind.REFUSED),
        ({"RCPT": "450 4.2.1 Mailbox busy"}, Kind.DEFERRED),
    ],
)
@pytest.mark.parametrize("data", ["354 go on", "503 5.5.1 Out of order"])
def test_a_server_that_wants_content_after_a_refusal_gets_none(connected, at, data, kind):
    """RFC 2920, section 3.1. The connection is as good as before, though not for a provider that may be at fault."""
    with ScriptedServer({**at, "DATA": data}, features=OFFERED) as server:
        connection = connected(server)
        outcome = connection.hand_over(an_email())
        server.at = {}
        again = connection.hand_over(an_email())

    assert (outcome.kind, again.kind) == (kind, Kind.ACCEPTED)
    assert server.empty_count == data.startswith("354")
    assert len(server.accepted) == 1
    assert server.connection_count == (2 if outcome.is_bad_round else 1)


# What servers say that answer too little, too much or out of order; the outcome, and whether they have the mail
LIES = [
    ({"MAIL": None}, "unavailable", False),
    ({"RCPT": None}, "unavailable", False),
    ({"DATA": None}, "unavailable", False),
    ({"MAIL": "250 yes\r\n250 yes"}, "unavailable", False),
    ({"RCPT": "250 yes\r\n250 yes"}, "unavailable", False),
    ({"RCPT": "250 yes\r\n354 go on"}, "uncertain", True),
    ({"MAIL": "354 go on"}, "unavailable", False),
    ({"MAIL": "250 yes\r\n421 4.3.2 Closing"}, "unavailable", False),
    ({"RCPT": "250 yes\r\n421 4.3.2 Closing"}, "unavailable", False),
    ({"MAIL": "250 yes\r\nwhat?"}, "unavailable", False),
    ({"MAIL": "550 5.7.1 Not you\r\n250 yes"}, "misconfigured", False),
    ({"RCPT": "550 5.1.1 No such user\r\n250 yes"}, "refused, bad address", False),
    ({"RCPT": "550 5.1.1 No such user\r\n354 go on"}, "refused, bad address", False),
]


@pytest.mark.parametrize(("at", "words", "has_it"), LIES)
def test_a_server_out_of_step_is_judged_alike_with_and_without_it(connected, pipelining, at, words, has_it):
    at = {step: (lambda _peer: None) if said is None else said for step, said in at.items()}
    with ScriptedServer(at) as server:
        outcome = connected(server).hand_over(an_email())

    assert (judgement(outcome), len(server.accepted)) == (words, has_it)


# Finished bytes

LINES = st.lists(
    st.one_of(st.just(b""), st.just(b"."), st.just(b".\r\n"), st.just(b"\r\n"), st.binary(max_size=30)), max_size=20
).map(
    lambda pieces: [re.sub(rb"[^ -~]", b"x", piece.replace(b"\r\n", b"\n")).replace(b"\n", b"\r\n") for piece in pieces]
)


def a_mail(*pieces, has_dots=True):
    return WireMail("news@example.org", ["ann@example.org"], pieces, has_dots=has_dots)


@pytest.mark.usefixtures("pipelining")
@pytest.mark.parametrize("options", [{}, {"use_tls": True}], ids=["in clear", "by TLS"])
def test_pieces_arrive_as_they_are_however_they_are_cut(connected, certificate, monkeypatch, pipelining, options):
    path, tls_context = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with SMTPServer(tls_context=tls_context if options else None, pipelining=pipelining) as server:
        connection = connected(server, host="localhost", timeout=5, **options)

        @configured(max_examples=25, deadline=None)
        @given(LINES)
        def send(pieces):
            mail = a_mail(b"Subject: Hello\r\n\r\n", *pieces, b"\r\n")

            assert connection.hand_over(mail).kind is Kind.ACCEPTED
            assert server.accepted[-1].content == b"".join(mail.pieces)
            assert mail.mailengine_sha256 == hashlib.sha256(server.accepted[-1].content).digest()

        send()


@pytest.mark.parametrize("count", [1, 5_000])
@pytest.mark.parametrize("size", [0, 72, 2_000])
@pytest.mark.parametrize("options", [{}, {"use_tls": True}], ids=["in clear", "by TLS"])
def test_many_pieces_and_large_ones_arrive(connected, certificate, monkeypatch, options, count, size):
    path, tls_context = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    pieces = [b"Subject: Hello\r\n\r\n", *[(b"x" * 70 + b"\r\n") * (size // 72)] * count, b"\r\n"]
    with SMTPServer(tls_context=tls_context if options else None) as server:
        outcome = connected(server, host="localhost", timeout=15, **options).hand_over(a_mail(*pieces, has_dots=False))

    assert (outcome.kind, outcome.sha256) == (Kind.ACCEPTED, hashlib.sha256(b"".join(pieces)).digest())


@pytest.mark.parametrize("end", [[b"Hello\r\n"], [b"Hello\r\n", b""], [b"Hello"], [b"Hello", b""]])
@pytest.mark.parametrize("has_dots", [True, False])
def test_the_last_line_ends_before_the_dot(connected, has_dots, end):
    with ScriptedServer() as server:
        assert connected(server).hand_over(a_mail(b"Subject: Hello\r\n\r\n", *end, has_dots=has_dots)).is_good_round

    assert server.accepted[0].endswith(b"\r\n\r\nHello\r\n.\r\n")


@pytest.mark.parametrize("act", [hangs, resets])
def test_of_a_write_that_ends_in_the_dot_the_dot_is_the_last_to_go(connected, monkeypatch, act):
    """As long as any of it is with us no server has it all."""
    monkeypatch.setattr(dialogue, "SMALL", 1 << 30)
    mail = a_mail(*[b"x" * 70 + b"\r\n"] * 400_000, has_dots=False)
    with ScriptedServer({"BODY": lambda peer: [peer.read(10_000), act(peer)][1]}) as server:
        outcome = connected(server).hand_over(mail)

    assert judgement(outcome) == "deferred, bad round"
    assert server.accepted == []


@configured(max_examples=200, deadline=None)
@given(st.from_regex(smtp._PLAIN_ADDRESS, fullmatch=True))
def test_a_plain_address_is_what_a_parser_makes_of_it(address):
    backend = smtp.SMTPBackend(host="mx.example.org", alias="relay")
    quick = backend._envelope_address(address)
    usual, smtp._PLAIN_ADDRESS = smtp._PLAIN_ADDRESS, re.compile("(?!)")
    try:
        assert backend._envelope_address(address) == quick
    finally:
        smtp._PLAIN_ADDRESS = usual
