"""Mail that an event loop drives: by connections that are open, until the server says something else than yes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from mailengine.backends.dialogue import Phase, Progress
from mailengine.backends.wire import WireMail
from mailengine.outcomes import Kind
from mailengine.pipeline.eventloop import EventLoop
from mailengine.pipeline.senders import Team
from mailengine.providers.connection import Connection

from .scripted import GIVE_UP_SECONDS, ScriptedServer, closes, drips, hangs, no_more_threads, resets
from .test_table_smtp import REPLIES, row

SENDER = "news@example.org"
PLAIN = ["PIPELINING", "SIZE"]
WAIT_SECONDS = 10


def a_mail(to="ann@example.org", *more, size=0, **kwargs):
    lines = (b"x" * 70 + b"\r\n") * (size // 72)
    return WireMail(SENDER, [to, *more], [b"Subject: Hello\r\n\r\n", b"Hello.\r\n" + lines], has_dots=False, **kwargs)


@pytest.fixture
def teams():
    teams = []

    def make(size=2, **kwargs):
        teams.append(Team(size, **kwargs))
        return teams[-1]

    yield make
    for team in teams:
        team.close()


@pytest.fixture
def in_threads(monkeypatch):
    """The mails that a thread has handed over, or gone on with."""
    seen = []
    usual = Connection.hand_over_together

    def hand_over_together(self, emails, **kwargs):
        seen.extend(emails)
        return usual(self, emails, **kwargs)

    monkeypatch.setattr(Connection, "hand_over_together", hand_over_together)
    return seen


@pytest.fixture
def by_loop(monkeypatch):
    """The mails that the loop has begun."""
    seen = []
    usual = Connection.begin

    def begin(self, emails, **kwargs):
        sock = usual(self, emails, **kwargs)
        seen.extend(emails if sock else [])
        return sock

    monkeypatch.setattr(Connection, "begin", begin)
    return seen


def sent(team, mail, **kwargs):
    kwargs.setdefault("until", time.monotonic() + WAIT_SECONDS)
    team.send("a mail", [mail], "relay", **kwargs)
    return collected(team)["a mail"]


def collected(team):
    outcomes = {}
    while team.busy_count:
        outcomes |= {ticket: outcome for ticket, (outcome,) in team.collect(wait_seconds=WAIT_SECONDS)}
    return outcomes


def use(settings, server, **options):
    settings.MAILERS = {"relay": server.mailer(**{"timeout": 0.5, **options})}


def test_a_thread_opens_and_the_loop_goes_on(settings, teams, in_threads):
    mails = [a_mail(f"reader{number}@example.org") for number in range(5)]
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        team = teams()
        outcomes = [sent(team, mail) for mail in mails]
        team.close()

    assert in_threads == mails[:1]
    assert server.connection_count == 1
    assert [outcome.kind for outcome in outcomes] == [Kind.ACCEPTED] * 5
    assert {outcome.phase for outcome in outcomes} == {"await"}
    assert {outcome.sha256 for outcome in outcomes} == {mails[0].mailengine_sha256}
    assert server.accepted == [b"Subject: Hello\r\n\r\nHello.\r\n.\r\n"] * 5
    assert server.received.count(b"RCPT TO:<reader4@example.org>\r\nDATA\r\n") == 1


def test_dots_are_doubled_and_everybody_of_the_envelope_is_named(settings, teams, in_threads):
    mail = WireMail(SENDER, ["ann@example.org", "bob@example.org"], [b"Subject: Hello\r\n\r\n.", b"\r\n..\r\nend"])
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        team = teams()
        sent(team, a_mail())
        outcome = sent(team, mail)

    assert (outcome.kind, in_threads[1:]) == (Kind.ACCEPTED, [])
    assert server.accepted[1] == b"Subject: Hello\r\n\r\n..\r\n...\r\nend\r\n.\r\n"
    assert b"RCPT TO:<ann@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n" in server.received


@pytest.mark.parametrize("reason", ["no PIPELINING", "a large mail", "a large envelope", "an address it can't carry"])
def test_what_a_thread_has_to_do(settings, teams, in_threads, reason):
    mail = {
        "no PIPELINING": a_mail(),
        "a large mail": a_mail(size=100_000),
        "a large envelope": a_mail(*[f"reader{number:04}@example.org" for number in range(200)]),
        "an address it can't carry": a_mail("jürgen@example.org"),
    }[reason]
    with ScriptedServer(features=["SIZE"] if reason == "no PIPELINING" else PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        outcome = sent(team, mail)

    assert in_threads[1:] == [mail]
    assert outcome.kind is (Kind.REFUSED if "address" in reason else Kind.ACCEPTED)


ODD = {
    "closes": closes,
    "resets": resets,
    "hangs": hangs,
    "drips": drips(b"250 ye"),
    "three lines": "250-yes\r\n250-and\r\n250 more",
    "two codes": "250-yes\r\n550 no",
    "half a line": lambda peer: (peer.sock.sendall(b"250 y"), time.sleep(0.05), peer.say("es"))[:0] or None,
    "too much": "250 yes\r\n250 and again",
    "a long line": "250 " + "y" * 5_000,
    "no code": "yes",
    "421 and closes": lambda peer: (peer.say("421 4.3.2 Closing"), closes(peer))[:0] or None,
}
STEPS = ("MAIL", "RCPT", "DATA", "DOT")
CASES = [
    *[pytest.param(*row(line).values[:2], id=row(line).id) for line in REPLIES.strip().splitlines()],
    *[pytest.param(step, action, id=f"{step} {name}") for step in STEPS for name, action in ODD.items()],
    # One that hangs up there may do so before the content is written or after: in both ways a matter of luck.
    *[pytest.param("BODY", ODD[name], id=f"BODY {name}") for name in ("hangs", "drips")],
]
CASES = [case for case in CASES if case.values[0] in (*STEPS, "BODY")]


@pytest.mark.parametrize(("step", "action"), CASES)
def test_what_comes_of_a_mail_is_the_same_as_in_a_thread(settings, teams, by_loop, quick_goodbye, step, action):
    """And so is what becomes of the connection: a good mail, one like this, a good mail again."""
    timeout = 0.5 if action is hangs else WAIT_SECONDS
    seconds = 1 if action is ODD["drips"] else WAIT_SECONDS  # no other lasts until its deadline

    def play(is_driven):
        with ScriptedServer(features=PLAIN) as server:
            use(settings, server, timeout=timeout)
            team = teams()
            if not is_driven:
                team._loop.put = lambda task: (_ for _ in ()).throw(OSError("no loop"))
            first = sent(team, a_mail())
            server.at = {step: action}
            mail = a_mail("ann@example.org", "bob@example.org")
            outcome = sent(team, mail, until=time.monotonic() + seconds)
            assert (mail in by_loop) is is_driven
            server.at = {}
            last = sent(team, a_mail())
            team.close()
        return first.kind, replace(outcome, detail=""), last.kind, server.connection_count, server.accepted

    driven, by_threads = play(True), play(False)

    assert driven == by_threads


def test_a_server_that_lets_us_wait_holds_up_nobody_else(settings, teams):
    """Nor does one that reads no more, in the midst of a content: whatever may wait goes to a thread."""
    first = threading.Event()

    def hangs_once(peer):
        if not first.is_set():
            first.set()
            hangs(peer)
        peer.server.take_body(peer)

    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams(4)
        for number in range(4):
            team.send(number, [a_mail()], "relay")
        collected(team)
        server.at = {"BODY": hangs_once}
        team.send("slow", [a_mail(size=60_000)], "relay", until=time.monotonic() + GIVE_UP_SECONDS)
        assert first.wait(WAIT_SECONDS)
        for number in range(50):
            team.send(number, [a_mail()], "relay", until=time.monotonic() + GIVE_UP_SECONDS)
            while team.busy_count > 1:
                tickets = dict(team.collect(wait_seconds=WAIT_SECONDS))
                assert "slow" not in tickets
        server.stopped.set()
        slow = collected(team)["slow"]

    assert (slow.kind, len(server.accepted)) == (Kind.UNCERTAIN, 54)


def test_a_content_that_goes_out_in_pieces_arrives_whole(settings, teams, in_threads, monkeypatch):
    """Its first write takes what the system has room for; a thread writes the rest."""
    usual = socket.socket.sendmsg

    class Small(socket.socket):
        def sendmsg(self, pieces, *rest):
            return usual(self, [b"".join(pieces)[:30_000]], *rest)

    monkeypatch.setattr(socket, "socket", Small)
    mail = a_mail(size=60_000)
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        outcome = sent(team, mail)

    assert (outcome.kind, in_threads[1:]) == (Kind.ACCEPTED, [mail])
    assert server.accepted[1] == b"".join(mail.pieces) + b".\r\n"


def test_no_content_is_written_once_the_time_is_over(settings):
    """This process may have been frozen, and somebody else have sent the mail by now."""
    mail = a_mail()
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        connection = Connection("relay")
        connection.hand_over(a_mail())
        until = time.monotonic() + 0.2
        sock = connection.begin([mail], until=until)
        assert sock is not None
        time.sleep(0.3)

        assert (connection.is_overdue(), connection.go_on()) == (True, Progress.STUCK)
        (outcome,) = connection.hand_over_together([mail], until=until)
        connection.close()

    assert (outcome.kind, len(server.accepted)) == (Kind.UNAVAILABLE, 1)


@contextmanager
def busy(team):
    """Within it the loop has no time for what arrives."""
    go_on, usual = threading.Event(), team._loop._begin
    team._loop._begin = lambda task: (go_on.wait(WAIT_SECONDS), usual(task))
    yield
    go_on.set()
    team._loop._begin = usual


def test_a_mail_that_was_written_is_never_taken_for_one_that_was_not(settings):
    """However long ago the connection was used, and however late it is."""
    mail = a_mail()
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        connection = Connection("relay")
        connection.hand_over(a_mail())
        server.at = {"DOT": hangs}
        until = time.monotonic() + 0.5
        assert connection.begin([mail], until=until)
        while connection._backend.connection.phase is not Phase.AWAIT:
            assert connection.go_on() is Progress.WAITS
        time.sleep(0.6)
        connection._used_at = float("-inf")
        (outcome,) = connection.hand_over_together([mail], until=until)
        connection.close()

    assert outcome.kind is Kind.UNCERTAIN
    assert outcome.detail.endswith("it got as far as: await")
    assert len(server.accepted) == 2


@pytest.mark.parametrize("size", [0, 100_000], ids=["by the loop", "by a thread"])
def test_a_connection_that_rests_holds_no_mail_in_memory(settings, teams, size):
    """There may be many of them, and a mail may be large."""
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        assert [sent(team, a_mail(size=size)).kind for _ in range(2)] == [Kind.ACCEPTED] * 2
        (connection,) = team._idle["relay"]
        held = {**vars(connection), **vars(connection._backend.connection)}
        team.close()

    assert (held["_begun"], held["_unwritten"]) == (None, [])


def test_what_was_withdrawn_is_not_begun(settings, teams):
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        team = teams()
        sent(team, a_mail())
        with busy(team):
            team.send("late", [a_mail()], "relay", until=time.monotonic() - 1)
            team.grace_seconds = 0
            ((ticket, (outcome,)),) = team.collect(wait_seconds=0.2)
        again = sent(team, a_mail())
        team.close()

    assert (ticket, outcome.kind, outcome.code, outcome.is_local) == ("late", Kind.UNAVAILABLE, "no thread", True)
    assert (again.kind, len(server.accepted)) == (Kind.ACCEPTED, 2)


@pytest.mark.parametrize("at", ["the start", "a refusal"])
def test_without_another_thread_all_is_sent_by_those_there_are(settings, teams, quick_goodbye, at):
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server)
        team = teams()
        sent(team, a_mail())
        if at == "a refusal":
            sent(team, a_mail())
            server.at = {"RCPT": "550 5.1.1 No such user"}
        with no_more_threads():
            outcome = sent(team, a_mail())

    assert outcome.kind is (Kind.REFUSED if at == "a refusal" else Kind.ACCEPTED)


def fill(sock):
    """Leave no room for another byte."""
    timeout = sock.gettimeout()
    sock.settimeout(0)
    with suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65_536)
    sock.settimeout(timeout)


def test_a_server_that_reads_nothing_holds_up_no_other(settings, teams):
    """Its buffers are full, and it says yes all the same: the next envelope has no room, and must not be waited for."""

    def says_yes_unread(peer):
        peer.say("250 taken")
        hangs(peer)

    with ScriptedServer(features=PLAIN) as bad, ScriptedServer(features=PLAIN) as good:
        # Whoever waited for the one would be too late for the other.
        settings.MAILERS = {"relay": bad.mailer(timeout=3 * WAIT_SECONDS), "other": good.mailer(timeout=WAIT_SECONDS)}
        team = teams(3)
        for alias in ("relay", "other"):
            team.send(alias, [a_mail()], alias, until=time.monotonic() + WAIT_SECONDS)
            collected(team)
        bad.at = {"BODY": says_yes_unread}
        sent(team, a_mail(), until=time.monotonic() + WAIT_SECONDS)
        (connection,) = team._idle["relay"]
        fill(connection._backend.connection.sock)
        team.send("bad", [a_mail()], "relay", until=time.monotonic() + 3 * WAIT_SECONDS)
        time.sleep(0.1)
        team.send("good", [a_mail()], "other", until=time.monotonic() + WAIT_SECONDS)
        tickets = {}
        while "good" not in tickets:
            tickets |= {ticket: outcome for ticket, (outcome,) in team.collect(wait_seconds=WAIT_SECONDS)}
        assert tickets["good"].kind is Kind.ACCEPTED
        bad.stopped.set()
        collected(team)


def test_a_loop_that_fails_leaves_its_mail_to_threads(settings, teams, in_threads, monkeypatch, caplog):
    def fails(self):
        raise LookupError("a bug")

    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        monkeypatch.setattr(EventLoop, "_turn", fails)
        outcomes = [sent(team, a_mail()) for _ in range(3)]

    assert [outcome.kind for outcome in outcomes] == [Kind.ACCEPTED] * 3
    assert (len(server.accepted), len(in_threads)) == (4, 4)
    assert "the event loop failed" in caplog.text


def test_mail_that_arrives_just_after_the_loop_has_failed_gets_a_thread(settings, teams, in_threads, monkeypatch):
    """It was on its way to a loop that was still at work."""

    def fails(self):
        raise LookupError("a bug")

    def start_and_fail(self):
        usual(self)
        self.join(timeout=WAIT_SECONDS)

    usual = EventLoop._start
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        monkeypatch.setattr(EventLoop, "_turn", fails)
        monkeypatch.setattr(EventLoop, "_start", start_and_fail)
        team.send("late", [a_mail()], "relay", until=time.monotonic() + WAIT_SECONDS)
        arrived = team.collect(wait_seconds=WAIT_SECONDS)

    assert [(ticket, outcome.kind) for ticket, (outcome,) in arrived] == [("late", Kind.ACCEPTED)]
    assert (len(server.accepted), len(in_threads)) == (2, 2)


def test_a_socket_that_can_t_be_watched_is_waited_for_by_a_thread(settings, teams, in_threads, monkeypatch):
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        sent(team, a_mail())
        usual = team._loop._selector.register
        team._loop._selector.register = lambda *args: (_ for _ in ()).throw(OSError("no space left"))
        first = sent(team, a_mail())
        team._loop._selector.register = usual
        second = sent(team, a_mail())

    assert (first.kind, second.kind, len(server.accepted), len(in_threads)) == (Kind.ACCEPTED, Kind.ACCEPTED, 4, 2)


def test_who_answers_late_has_all_its_time_for_the_next_reply(settings):
    """The envelope's replies come just as patience is lost: the content goes out then, and its reply is waited for."""

    def slowly(peer):
        time.sleep(0.3)
        return "250 taken"

    mail = a_mail()
    with ScriptedServer({"DOT": slowly}, features=PLAIN) as server:
        use(settings, server, timeout=1)
        connection = Connection("relay")
        connection.hand_over(a_mail())
        assert connection.begin([mail], until=time.monotonic() + WAIT_SECONDS)
        time.sleep(0.2)  # the replies are there, and nobody has read them
        connection._patient_until = 0
        assert connection.is_overdue()
        (outcome,) = connection.hand_over_together([mail], until=time.monotonic() + WAIT_SECONDS)
        connection.close()

    assert (outcome.kind, len(server.accepted)) == (Kind.ACCEPTED, 2)


def test_what_is_under_way_when_the_team_is_closed_comes_to_its_end(settings, teams, in_threads):
    def waits(peer):
        begun.set()
        closed.wait(WAIT_SECONDS)
        return "550 5.1.1 No such user"

    begun, closed = threading.Event(), threading.Event()
    with ScriptedServer(features=PLAIN) as server:
        use(settings, server, timeout=WAIT_SECONDS)
        team = teams()
        sent(team, a_mail())
        server.at = {"DOT": waits}
        team.send("a mail", [a_mail()], "relay", until=time.monotonic() + WAIT_SECONDS)
        assert begun.wait(WAIT_SECONDS)
        team.close()
        closed.set()
        outcome = collected(team)["a mail"]
        team._loop.join(timeout=WAIT_SECONDS)
        for connection in team._idle["relay"]:
            connection.close()

    assert (outcome.kind, team._loop._thread.is_alive()) == (Kind.REFUSED, False)
