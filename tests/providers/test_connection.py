"""Connection: one open way to one provider, which turns whatever happens into an outcome."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest
from django.core.mail import EmailMessage

from mailengine.outcomes import Kind
from mailengine.pipeline.senders import Team
from mailengine.providers import connection as connection_module
from mailengine.providers.connection import Connection
from mailengine.testing import FakeProvider
from mailengine.testing.esp_server import ESPServer
from mailengine.testing.smtp_server import HANG_UP, SMTPServer

from .scripted import GIVE_UP_SECONDS, ScriptedServer, closes, drips, no_more_threads, resets


@pytest.fixture
def server(pipelining):
    with SMTPServer(pipelining=pipelining) as server:
        yield server


@pytest.fixture
def connection(server, settings):
    settings.MAILERS = {"relay": server.mailer(timeout=1)}
    connection = Connection("relay")
    yield connection
    connection.close()


@pytest.fixture
def fake(settings):
    """A function that makes the provider "lambda" with these OPTIONS, and gives a connection to it."""
    FakeProvider.reset()

    def make(**options):
        settings.MAILERS = {"lambda": {"BACKEND": "mailengine.testing.FakeProvider", "OPTIONS": options}}
        return Connection("lambda")

    yield make
    FakeProvider.reset()


def an_email(*to):
    return EmailMessage("Hello", "Hello.", "news@example.org", to or ["ann@example.org"])


def test_a_hundred_messages_use_one_connection(server, connection):
    """C07"""
    outcomes = [connection.hand_over(an_email()) for _ in range(100)]

    assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
    assert (len(server.accepted), server.connection_count) == (100, 1)


def test_a_dropped_connection_is_reopened_once_and_charges_nobody(server, connection):
    """C07, F-S27"""
    connection.hand_over(an_email())
    server.hang_up()

    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert (len(server.accepted), server.connection_count) == (2, 2)


def test_a_421_between_two_messages_is_a_dropped_connection(server, connection):
    """F-S16"""
    connection.hand_over(an_email())
    server.answer = lambda step: "421 4.4.2 Idle" if step.verb == "MAIL" and step.connection == 1 else None

    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert server.connection_count == 2


def test_each_of_several_dropped_connections_is_reopened_and_charges_nobody(server, settings):
    """F-S27: a server that was restarted has closed them all."""
    settings.MAILERS = {"relay": server.mailer(timeout=1)}
    connections = [Connection("relay") for _ in range(4)]
    for _ in range(3):
        assert {connection.hand_over(an_email()).kind for connection in connections} == {Kind.ACCEPTED}
        server.hang_up()
    for connection in connections:
        connection.close()

    assert (len(server.accepted), server.connection_count) == (12, 12)


def test_a_server_that_says_421_to_every_second_mail_of_a_connection_charges_nobody(server, connection):
    """F-S16"""
    seen = set()

    def once_each(step):
        if step.verb == "MAIL" and step.connection in seen:
            return "421 4.4.2 One at a time"
        seen.add(step.connection)
        return None

    server.answer = once_each
    assert [connection.hand_over(an_email()).kind for _ in range(5)] == [Kind.ACCEPTED] * 5


@pytest.mark.usefixtures("pipelining")
@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
def test_a_421_on_a_new_connection_is_the_servers_fault_at_each_phase(settings, step):
    """F-S16"""
    at = dict.fromkeys(["EHLO", "HELO"] if step == "EHLO" else [step], "421 4.3.2 Going down")
    with ScriptedServer(at) as server:
        settings.MAILERS = {"relay": server.mailer()}
        outcome = Connection("relay").hand_over(an_email())

    assert (outcome.kind, outcome.code[:3]) == (Kind.UNAVAILABLE, "421")


@pytest.mark.usefixtures("pipelining", "quick_goodbye")
@pytest.mark.parametrize("left_over", ["421 4.3.2 Going down", "250 " + "x" * 20_000, "what?", closes, resets])
def test_what_a_server_says_after_its_yes_hurts_neither_this_mail_nor_the_next(settings, left_over):
    """F-S15, F-S16"""

    def accepts_and(peer):
        peer.say("250 taken")
        return left_over(peer) if callable(left_over) else left_over

    with ScriptedServer({"DOT": accepts_and}) as server:
        settings.MAILERS = {"relay": server.mailer()}
        connection = Connection("relay")
        outcomes = [connection.hand_over(an_email()) for _ in range(3)]
        connection.close()

    assert [outcome.kind for outcome in outcomes] == [Kind.ACCEPTED] * 3
    assert len(server.accepted) == 3


@pytest.mark.usefixtures("pipelining")
def test_a_handshake_that_breaks_off_is_a_failure_to_connect(settings, certificate, monkeypatch):
    """F-S25"""
    path, tls_context = certificate()
    monkeypatch.setenv("SSL_CERT_FILE", str(path))

    def breaks_the_second(peer):
        return closes(peer) if peer.number == 2 else peer.start_tls()

    with ScriptedServer({"TLS": breaks_the_second}, features=["STARTTLS"], tls_context=tls_context) as server:
        settings.MAILERS = {"relay": server.mailer(host="localhost", use_tls=True)}
        kinds = []
        for _ in range(3):
            connection = Connection("relay")
            kinds.append(connection.hand_over(an_email()).kind)
            connection.close()

    assert kinds == [Kind.ACCEPTED, Kind.UNAVAILABLE, Kind.ACCEPTED]


def test_a_handover_whose_time_is_over_is_not_begun(server, connection):
    """F-D08, F-P14: this process was frozen, or its database slow."""
    outcome = connection.hand_over(an_email(), until=time.monotonic() - 1)

    assert (outcome.kind, outcome.code, outcome.is_local) == (Kind.UNAVAILABLE, "deadline", True)
    assert not outcome.is_bad_round
    assert server.connection_count == 0


@pytest.mark.usefixtures("pipelining")
@pytest.mark.parametrize(
    ("step", "reply", "is_kept", "kind"),
    [
        ("GREETING", b"220 hello", False, Kind.UNAVAILABLE),
        ("RCPT", b"250 yes", False, Kind.UNAVAILABLE),
        ("RCPT", b"250 yes", True, Kind.UNAVAILABLE),
        ("DOT", b"250 taken", False, Kind.UNCERTAIN),
        ("DOT", b"250 taken", True, Kind.UNCERTAIN),
    ],
)
def test_a_handover_is_over_when_its_time_is(settings, step, reply, is_kept, kind):
    """F-S02, F-S10"""
    with ScriptedServer() as server:
        settings.MAILERS = {"relay": server.mailer()}
        connection = Connection("relay")
        if is_kept:
            connection.hand_over(an_email())
        server.at[step] = drips(reply)
        began_at = time.monotonic()
        outcome = connection.hand_over(an_email(), until=began_at + 0.5)

        assert (outcome.kind, outcome.code) == (kind, "TimeoutError")
        assert outcome.detail.startswith("not done within 0.5 s; it got as far as: ")
        assert time.monotonic() - began_at < GIVE_UP_SECONDS / 2
        del server.at[step]
        assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
        assert server.connection_count == 2
        connection.close()


def test_a_team_passes_on_the_time_and_the_key(server, settings):
    settings.MAILERS = {"relay": server.mailer()}
    team = Team(2)
    team.send("late", [an_email()], "relay", until=time.monotonic() - 1, key="7f3a")
    team.send("in time", [an_email()], "relay", until=time.monotonic() + 30, key="7f3b")
    outcomes = {}
    while team.busy_count:
        outcomes |= {ticket: outcome for ticket, (outcome,) in team.collect(wait_seconds=10)}
    team.close()

    assert {ticket: outcome.code for ticket, outcome in outcomes.items()} == {"late": "deadline", "in time": ""}


def collected(team):
    """The outcome of each ticket, once nobody is busy any more."""
    outcomes = {}
    while team.busy_count:
        outcomes |= {ticket: outcome for ticket, (outcome,) in team.collect(wait_seconds=10)}
    return outcomes


def test_a_team_that_gets_no_thread_hands_the_mail_back(server, settings):
    """This host has run out of threads: that is no provider's fault, and the next mail may find one again."""
    settings.MAILERS = {"relay": server.mailer()}
    team = Team(2)
    with no_more_threads():
        team.send("none", [an_email()], "relay")
        outcome = collected(team)["none"]
    team.send("one", [an_email()], "relay")

    assert (outcome.kind, outcome.is_local, outcome.detail) == (Kind.UNAVAILABLE, True, "can't start new thread")
    assert collected(team)["one"].kind is Kind.ACCEPTED
    assert (team.idle_count, len(server.accepted)) == (2, 1)
    team.close()


def test_a_team_that_gets_no_second_thread_sends_all_by_the_first(server, settings):
    settings.MAILERS = {"relay": server.mailer()}
    team = Team(2)
    team.send("first", [an_email()], "relay")
    with no_more_threads():
        team.send("second", [an_email()], "relay")
        outcomes = collected(team)
    team.close()

    assert {ticket: outcome.kind for ticket, outcome in outcomes.items()} == dict.fromkeys(
        ["first", "second"], Kind.ACCEPTED
    )


@pytest.mark.parametrize("end", ["its time is over", "the team is closed"])
def test_what_no_thread_has_taken_is_not_sent_by_one_that_comes_to_it_late(server, settings, end):
    """The thread before it hangs. Of the second not a byte was sent, and it comes back as that."""
    settings.MAILERS = {"relay": server.mailer(timeout=30)}
    hangs, go_on = threading.Event(), threading.Event()

    def hang(step):
        if step.verb == "MAIL":
            hangs.set()
            go_on.wait(30)

    server.answer = hang
    team = Team(2, grace_seconds=0)
    team.send("first", [an_email("first@example.org")], "relay")
    assert hangs.wait(30)
    until = time.monotonic() + (0.2 if end == "its time is over" else 60)
    with no_more_threads():
        team.send("behind", [an_email("behind@example.org")], "relay", until=until)
    if end == "its time is over":
        ((ticket, (outcome,)),) = team.collect(wait_seconds=1)
        assert (ticket, outcome.kind, outcome.code, outcome.is_local) == (
            "behind", Kind.UNAVAILABLE, "no thread", True,
        )  # fmt: skip
        assert team.busy_count == 1
    team.close()
    (thread,) = team._threads
    go_on.set()
    thread.join(30)
    for task in team._tasks:
        task.connection.close()

    assert [mail.recipients for mail in server.accepted] == [("first@example.org",)]


def test_one_that_waits_for_a_thread_gets_it_once_it_is_free(server, settings):
    """Though a twin of it was given up in between."""
    settings.MAILERS = {"relay": server.mailer(timeout=30)}
    server.delay_seconds = 0.5
    team = Team(3, grace_seconds=0)
    team.send("first", [an_email()], "relay")
    with no_more_threads():
        team.send("given up", [an_email()], "relay", until=time.monotonic() + 0.1)
        team.send("patient", [an_email()], "relay")
        outcomes = collected(team)
    team.close()

    assert {ticket: outcome.kind for ticket, outcome in outcomes.items()} == {
        "first": Kind.ACCEPTED, "given up": Kind.UNAVAILABLE, "patient": Kind.ACCEPTED,
    }  # fmt: skip
    assert (team.idle_count, len(server.accepted)) == (3, 2)


def test_a_server_that_hangs_up_on_each_new_connection_is_not_asked_a_third_time(server, connection):
    connection.hand_over(an_email())
    server.answer = lambda step: HANG_UP if step.verb == "MAIL" else None

    assert connection.hand_over(an_email()).kind is Kind.UNAVAILABLE
    assert server.connection_count == 2


def test_a_connection_lost_later_than_mail_is_not_reopened(server, connection):
    """F-S07"""
    connection.hand_over(an_email())
    server.answer = lambda step: HANG_UP if step.verb == "DOT" else None

    assert connection.hand_over(an_email()).kind is Kind.UNCERTAIN
    assert (len(server.accepted), server.connection_count) == (2, 1)


def test_a_connection_that_was_idle_for_long_is_made_anew(server, connection, monkeypatch):
    """F-E20"""
    connection.hand_over(an_email())
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.01)
    time.sleep(0.02)
    connection.hand_over(an_email())

    assert server.connection_count == 2


def test_a_refused_recipient_leaves_the_connection_in_use(server, connection):
    server.replies["gone@example.org"] = "550 5.1.1 No such user"

    outcome = connection.hand_over(an_email("gone@example.org"))
    connection.hand_over(an_email())

    assert (outcome.kind, outcome.code, outcome.address_is_bad) == (Kind.REFUSED, "550 5.1.1", True)
    assert server.connection_count == 1


def test_after_a_bad_sequence_of_commands_the_connection_is_made_anew(server, connection):
    server.answer = lambda step: "503 5.5.1 Bad sequence" if step.verb == "RCPT" and step.connection == 1 else None

    assert connection.hand_over(an_email()).kind is Kind.DEFERRED
    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert server.connection_count == 2


def test_a_provider_that_comes_back_is_used_again(server, connection):
    """F-S01"""
    server.down()
    assert connection.hand_over(an_email()).kind is Kind.UNAVAILABLE
    server.up()

    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED


def test_an_accepted_mail_knows_its_digest_and_who_was_refused(server, connection):
    server.replies["gone@example.org"] = "550 5.1.1 No such user"

    outcome = connection.hand_over(an_email("ann@example.org", "gone@example.org"))

    assert outcome.kind is Kind.ACCEPTED
    assert outcome.sha256 == hashlib.sha256(server.accepted[0].content).digest()
    assert {address: str(refusal) for address, refusal in outcome.refusals.items()} == {
        "gone@example.org": "550 5.1.1 No such user"
    }


@pytest.mark.parametrize("backend", ["mailengine.backends.NoSuchBackend", "no.such.module.Backend"])
def test_an_entry_of_mailers_that_cannot_be_used_is_ours_to_mend(settings, backend):
    settings.MAILERS = {"relay": {"BACKEND": backend}}

    assert Connection("relay").hand_over(an_email()).kind is Kind.MISCONFIGURED
    assert Connection("missing").hand_over(an_email()).kind is Kind.MISCONFIGURED


def test_a_provider_that_should_fail_silently_is_not_allowed_to(server, settings):
    settings.MAILERS = {"relay": server.mailer(fail_silently=True)}
    server.down()

    assert Connection("relay").hand_over(an_email()).kind is Kind.UNAVAILABLE


def test_djangos_own_smtp_backend_serves_too(server, settings):
    options = {"host": server.host, "port": server.port, "timeout": 1}
    settings.MAILERS = {"relay": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend", "OPTIONS": options}}
    connection = Connection("relay")
    server.answer = lambda step: HANG_UP if step.verb == "DOT" and step.earlier_count == 1 else None

    outcomes = [connection.hand_over(an_email()).kind for _ in range(3)]
    connection.close()

    assert outcomes == [Kind.ACCEPTED, Kind.UNCERTAIN, Kind.ACCEPTED]


def test_a_certificate_that_cannot_be_trusted_gets_no_password(certificate, settings):
    """F-S24"""
    _path, tls_context = certificate()
    with SMTPServer(tls_context=tls_context, credentials=("ann", "secret")) as server:
        settings.MAILERS = {"relay": server.mailer(use_tls=True, username="ann", password="secret")}

        outcome = Connection("relay").hand_over(an_email())

    assert (outcome.kind, outcome.code) == (Kind.MISCONFIGURED, "SSLCertVerificationError")
    assert not server.accepted


def test_closing_twice_or_after_the_server_went_is_quiet(server, connection):
    connection.hand_over(an_email())
    server.down()

    connection.close()
    connection.close()


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("accept", Kind.ACCEPTED),
        ("bad_address", Kind.REFUSED),
        ("deferred", Kind.DEFERRED),
        ("greylisted", Kind.DEFERRED),
        ("misconfigured", Kind.MISCONFIGURED),
        ("refused", Kind.REFUSED),
        ("throttled", Kind.THROTTLED),
        ("unavailable", Kind.UNAVAILABLE),
        ("uncertain", Kind.UNCERTAIN),
    ],
)
def test_a_fake_provider_plays_each_word(fake, word, kind):
    outcome = fake(script=[word]).hand_over(an_email())

    assert outcome.kind is kind
    assert outcome.address_is_bad == (word == "bad_address")
    assert outcome.greylisted == (word == "greylisted")


def test_a_fake_provider_plays_its_script_across_connections_and_then_accepts(fake):
    fake(script=["deferred", "unavailable"])

    kinds = [Connection("lambda").hand_over(an_email()).kind for _ in range(4)]

    assert kinds == [Kind.DEFERRED, Kind.UNAVAILABLE, Kind.ACCEPTED, Kind.ACCEPTED]
    assert FakeProvider.named("lambda").calls == 4
    assert [email.to for email in FakeProvider.named("lambda").accepted] == [["ann@example.org"]] * 2


def test_a_fake_provider_can_fail_every_second_call(fake):
    connection = fake(fails_every=2)

    kinds = [connection.hand_over(an_email()).kind for _ in range(4)]

    assert kinds == [Kind.ACCEPTED, Kind.UNAVAILABLE] * 2


def test_a_fake_provider_counts_the_calls_of_all_threads(fake):
    fake(name="both", fails_every=2)
    threads = [
        threading.Thread(target=lambda: [Connection("lambda").hand_over(an_email()) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (FakeProvider.named("both").calls, len(FakeProvider.named("both").accepted)) == (200, 100)


def test_a_word_no_fake_provider_knows_is_named(fake):
    outcome = fake(script=["defered"]).hand_over(an_email())

    assert outcome.kind is Kind.MISCONFIGURED
    assert "Did you mean 'deferred'?" in outcome.detail


@pytest.fixture
def no_file_descriptors():
    """A function after which this process can open no more of them, until the test ends."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def run_out():
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))

    yield run_out
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_host_out_of_file_descriptors_is_not_the_providers_fault(connection, no_file_descriptors):
    no_file_descriptors()

    assert not connection.hand_over(an_email()).is_bad_round


def test_a_kept_connection_survives_a_host_out_of_file_descriptors(server, connection, no_file_descriptors):
    connection.hand_over(an_email())
    no_file_descriptors()

    assert connection.hand_over(an_email()).kind is Kind.ACCEPTED
    assert (len(server.accepted), server.connection_count) == (2, 1)


def test_a_kept_connection_over_http_survives_it_too(settings, no_file_descriptors):
    with ESPServer() as server:
        settings.MAILERS = {"esp": server.mailer("mailgun")}
        connection = Connection("esp")
        connection.hand_over(an_email())
        no_file_descriptors()
        outcome = connection.hand_over(an_email())
        connection.close()

    assert (outcome.kind, outcome.is_bad_round) == (Kind.UNAVAILABLE, False)
    assert len(server.accepted) == 1
