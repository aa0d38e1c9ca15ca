"""Whatever a provider says, a handover comes to one of the seven outcomes; mail that may have gone is in doubt."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from itertools import cycle
from types import SimpleNamespace

import pytest
from django.core.mail import EmailMessage
from hypothesis import assume, given
from hypothesis import settings as configured
from hypothesis import strategies as st

from mailengine.circuit import LONGEST_PAUSE_SECONDS, Circuit, after_throttle
from mailengine.outcomes import Kind, Outcome
from mailengine.providers.classify import outcome_of_return, retry_after_seconds
from mailengine.providers.connection import Connection
from mailengine.testing.esp_server import ESPServer

from .scripted import ScriptedHTTPServer, ScriptedServer, closes

NOW = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
IN_DOUBT = {Kind.ACCEPTED, Kind.UNCERTAIN}
"""What may come of a mail that the provider may have."""
SCALARS = [None, 0, -1, True, 1.5, "", "\x00", "\ud800", "Ünïcode", "x" * 10_000, "9" * 5_000, 10**30]
GARBAGE = [*SCALARS, [], {}, [[]], [None], {"": {}}, ["x"], {"email": 1}]
FORMS = {
    "of today": "%a, %d %b %Y %H:%M:%S GMT",
    "of RFC 850": "%A, %d-%b-%y %H:%M:%S GMT",
    "of asctime": "%a %b %d %H:%M:%S %Y",
}
"""The three forms of a date in HTTP: RFC 9110, section 5.6.7."""
ESPS = {
    # what each says to a mail that it takes, and to one that it doesn't
    "amazon_ses": ({"MessageId": "1"}, {"message": "No", "__type": "BadRequestException"}),
    "mailgun": ({"id": "<1@mailgun>", "message": "Queued. Thank you."}, {"message": "No"}),
    "postmark": (
        {"ErrorCode": 0, "Message": "OK", "MessageID": "1", "To": "ann@example.org", "SubmittedAt": "now"},
        {"ErrorCode": 300, "Message": "No"},
    ),
    "resend": ({"id": "1"}, {"statusCode": 422, "name": "validation_error", "message": "No"}),
    "sendgrid": ({}, {"errors": [{"message": "No", "field": "from"}]}),
}


def an_email():
    return EmailMessage("Hello", "Hello.", "news@example.org", ["ann@example.org"])


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("0", 1),
            ("99999999999999999999", 3600),
            ("9" * 10_000, 3600),
            ("-5", None),
            ("NaN", None),
            ("1e400", None),
            ("inf", None),
            ("٣", None),
            ("5, 10", None),
            ("x" * 10_000, None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
            ("Fri, 31 Dec 9999999 23:59:59 GMT", None),
            ("Mon, 01 Jan 0001 00:00:00 GMT", 1),
            ("Mon, 01 Jan 0001 00:00:00 +9999", None),
            (b"7", None),
            (["7"], None),
        ],
    )
    def test_each_is_clamped_or_none(self, value, seconds):
        assert retry_after_seconds(value) == seconds

    @configured(max_examples=60, deadline=None)
    @given(
        st.one_of(
            st.text(),
            st.floats().map(repr),
            st.integers().map(str),
            st.builds(datetime.strftime, st.datetimes(), st.sampled_from(list(FORMS.values()))),
        )
    )
    def test_any_text_is_clamped_or_none_and_so_is_what_the_circuit_stores(self, text):
        seconds = retry_after_seconds(text)
        circuit = after_throttle(Circuit(), now=NOW, retry_after_seconds=seconds)

        assert seconds is None or 1 <= seconds <= 3600
        assert NOW + timedelta(seconds=1) <= circuit.throttled_until <= NOW + timedelta(hours=1)

    @configured(max_examples=30)
    @given(st.floats(allow_nan=False))
    def test_the_circuit_clamps_whatever_it_is_given(self, seconds):
        until = after_throttle(Circuit(), now=NOW, retry_after_seconds=seconds).throttled_until

        assert NOW + timedelta(seconds=1) <= until <= NOW + timedelta(seconds=LONGEST_PAUSE_SECONDS)

    @pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "America/Los_Angeles"])
    @pytest.mark.parametrize("form", FORMS)
    def test_a_date_is_of_gmt_wherever_we_are(self, settings, form, zone):
        settings.TIME_ZONE = zone  # of the process, too
        now = datetime.now(timezone.utc)

        def wait(minutes):
            return retry_after_seconds((now + timedelta(minutes=minutes)).strftime(FORMS[form]))

        assert (wait(-1), wait(120)) == (1, 3600)
        assert 1 < wait(30) < 3600


def bodies(whole):
    """Bodies that are nearly this one, or nothing like it."""
    text = json.dumps(whole).encode()
    for name in whole:
        yield json.dumps({key: value for key, value in whole.items() if key != name}).encode()
        yield from (json.dumps({**whole, name: value}).encode() for value in GARBAGE)
    yield from (json.dumps(value).encode() for value in [*GARBAGE, *([value] for value in GARBAGE), [whole, whole]])
    yield from (
        b"",
        text[:-1],
        text + text,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\0" * 50,
        b"\xff\xfe",
        b"NaN",
        b"1e999",
    )


STATUS_LINES = [
    *(
        b"HTTP/1.1 " + status
        for status in (b"0 x", b"99 x", b"199 x", b"600 x", b"999 x", b"1000 x", b"abc x", b"-1 x")
    ),
    *(b"HTTP/1.1 " + status for status in (b"", b"20 OK", b"2 00 OK", b"2000 OK", b"\xff\xff", b"4\xb2 x", b"+40 x")),
    *(
        b"",
        b"garbage",
        b"HTTP/9.9 200 OK",
        b"HTTP/1.1200 OK",
        b"200 OK",
        b"220 smtp ready",
        b"HTTP/1.1 400 " + b"x" * 70_000,
    ),
    *(b"HTTP/1.1 100 Go on", b"HTTP/1.1 101 Now", b"HTTP/1.1 103 Early"),
    b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000,
    b"HTTP/1.1 200 OK" + b"\r\nX-Many: x" * 200,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
    b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked",
]


@pytest.fixture(params=ESPS)
def wire(request, settings):
    """One of the ESPs, of which each answer is bytes that a test chooses: `wire.hand_over(bytes)`."""
    if request.param == "amazon_ses":
        pytest.importorskip("boto3")
    said = [b""]

    def speak(peer):
        peer.say(said[0])
        if not said[0].startswith(b"HTTP/1.1 ") or b"Content-Length" not in said[0]:
            closes(peer)

    with ScriptedHTTPServer(speak) as server:
        esp = ESPServer()
        esp.port = server.port
        settings.MAILERS = {"esp": esp.mailer(request.param, timeout=2)}
        connection = Connection("esp")

        def hand_over(answer):
            said[0] = answer
            requests = server.request_count
            outcome = connection.hand_over(an_email())
            assert server.request_count == requests + 1
            return outcome

        yield SimpleNamespace(esp=request.param, hand_over=hand_over, hang_up=connection.close)
        connection.close()


def some(wire, whole):
    """As many examples of `bodies()` as there is time for: boto3 takes its time to make a client anew."""
    return list(bodies(whole))[:: 16 if wire.esp == "amazon_ses" else 2]


def answer(status, body=b"{}", *headers):
    head = [
        b"HTTP/1.1 %d Said" % status,
        b"Content-Length: %d" % len(body),
        b"Content-Type: application/json",
        *headers,
    ]
    return b"\r\n".join([*head, b"", body])


class TestHTTP:
    def test_a_yes_that_cannot_be_read_is_in_doubt(self, wire):
        whole, _no = ESPS[wire.esp]
        for body in some(wire, whole):
            outcome = wire.hand_over(answer(200, body))

            assert outcome.kind in IN_DOUBT, (outcome, body[:100])

    def test_an_answer_without_a_mail_in_it_proves_nothing(self, wire):
        kinds = {wire.hand_over(answer(200, body)).kind for body in (b"", b"[]", b"null", b"[null]", b"garbage")}

        assert kinds == ({Kind.ACCEPTED} if wire.esp == "sendgrid" else {Kind.UNCERTAIN})  # its status says it all

    def test_a_no_that_cannot_be_read_is_no_yes(self, wire):
        _yes, whole = ESPS[wire.esp]
        for body, status in zip(some(wire, whole), cycle([400, 422, 422, 500]), strict=False):
            outcome = wire.hand_over(answer(status, body))

            assert outcome.kind in ({Kind.REFUSED, Kind.UNCERTAIN} if status < 500 else {Kind.UNCERTAIN}), body[:100]

    def test_a_status_that_makes_no_sense_is_in_doubt(self, wire):
        for line in STATUS_LINES[:: 8 if wire.esp == "amazon_ses" else 2]:
            outcome = wire.hand_over(line + b"\r\n\r\nzz\r\n")
            wire.hang_up()

            assert outcome.kind is Kind.UNCERTAIN, (outcome, line[:100])

    def test_any_bytes_at_all_have_an_outcome(self, wire):
        @configured(max_examples=3 if wire.esp == "amazon_ses" else 10, deadline=None)
        @given(st.one_of(st.binary(max_size=100), st.binary(max_size=100).map(lambda some: b"HTTP/1.1 " + some)))
        def ask(said):
            outcome = wire.hand_over(said)
            wire.hang_up()

            assert outcome.kind is Kind.UNCERTAIN or re.match(rb"HTTP/1\.\d +[2-5]\d\d", said)

        ask()

    @pytest.mark.parametrize("wire", ["mailgun"], indirect=True)
    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize(
        "headers",
        [
            [b"Retry-After: \xff\xfe\xe9"],
            [b"Retry-After: " + b"9" * 10_000],
            [b"Retry-After: " + b"x" * 10_000],
            [b"Retry-After: 5", b"Retry-After: 10"],
            [b"Retry-After: 7", b"retry-after: Wed, 21 Oct 2015 07:28:00 GMT"],
            [b"Retry-After:"],
            [b"Retry-After: -1"],
            [b"Retry-After: NaN"],
            [b"Retry-After: Fri, 31 Dec 9999999 23:59:59 GMT"],
        ],
        ids=lambda headers: headers[0][:24].decode("latin-1").encode("unicode_escape").decode(),
    )
    def test_a_wait_that_makes_no_sense_is_clamped_or_our_own(self, wire, status, headers):
        outcome = wire.hand_over(answer(status, b"{}", *headers))

        assert outcome.kind is Kind.THROTTLED or (status == 503 and outcome.kind is Kind.UNAVAILABLE)
        assert outcome.retry_after_seconds is None or 1 <= outcome.retry_after_seconds <= 3600

    @pytest.mark.parametrize(
        "headers",
        [b"Content-Encoding: gzip", b"Content-Encoding: klingon", b"Content-Type: text/plain; charset=klingon"],
    )
    def test_a_body_that_cannot_be_decoded_is_in_doubt(self, wire, headers):
        assert wire.hand_over(answer(200, b"garbage", headers)).kind in IN_DOUBT


STEPS = ["GREETING", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "DOT"]
CODES = [
    "250",
    "354",
    "334",
    "235",
    "421",
    "450",
    "535",
    "550",
    "552",
    "-50",
    "+25",
    "5\xb20",
    "25",
    "",
    "2_5",
    "2500",
    "5500",
]
LINE = st.tuples(
    st.one_of(st.sampled_from(CODES), st.integers(0, 9999).map(lambda code: f"{code:03}")).map(
        lambda code: code.encode("latin-1")
    ),
    st.sampled_from([b" ", b"-", b"", b"\t", b"\xa0"]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"5.1.1 x", b"2.0.0 x", b"9.9.9 x", b"5.9999.1 x", b"5.1.1\0", b"x" * 10_000, b"\xff\xfe\xe9"]
        ),
    ),
).map(lambda parts: b"".join(parts).replace(b"\n", b"").replace(b"\r", b""))
REPLIES = st.lists(LINE, min_size=1, max_size=3).map(lambda lines: b"\r\n".join(lines) + b"\r\n")
ANSWERED_AHEAD = re.compile(rb"(?:354-[^\n]*\n)*354(?![-\d])[^\n]*\n.", re.DOTALL)
"""Go on, and an answer to the mail before it was read: whether the server then has it is for chance to say."""
ODD_REPLIES = [
    b"\r\n",
    b"250-yes\r\n550 no\r\n",
    b"550-no\r\n250 yes\r\n",
    b"450-later\r\n550 no\r\n",
    b"550-no\r\nxxx\r\n",
    b"5500 no\r\n",
    b"2500 yes\r\n",
    b"600 x\r\n",
    b"999 x\r\n",
    b"000 x\r\n",
    b"550 " + b"x" * 10_000 + b"\r\n",
    b"550-" + b"x" * 10_000 + b"\r\n550 no\r\n",
    b"550-no\r\n" * 3_000 + b"550 no\r\n",
]


def is_a_proper_no(reply):
    """Whether all lines of this reply, up to its last, say no by the same code and are no longer than lines may be."""
    lines = re.match(rb"(?:[^\n]{3}-[^\n]*\n)*[^\n]*\n", reply)[0].splitlines()
    codes = {line[:3] for line in lines}
    return (
        len(codes) == 1
        and re.fullmatch(rb"[45]\d\d", lines[0][:3]) is not None
        and not any(re.match(rb"\d{4}", line) or len(line) > 8_000 for line in lines)
    )


@pytest.fixture
def dialogue(settings, quick_goodbye):
    """A function: a mail to a server that says these bytes at this step; its outcome, and whether the server has it."""
    said = [b""]

    def speak(peer):
        peer.say(said[0])

    servers = {}

    def hand_over(step, reply):
        said[0] = reply
        if step not in servers:
            features = {"STARTTLS": ["STARTTLS"], "AUTH": ["AUTH PLAIN LOGIN CRAM-MD5"]}.get(step, ())
            servers[step] = ScriptedServer({step: speak}, features=features)
            servers[step].__enter__()
        server = servers[step]
        options = {"STARTTLS": {"use_tls": True}, "AUTH": {"username": "desk", "password": "secret"}}.get(step, {})
        settings.MAILERS = {"relay": server.mailer(timeout=0.3, **options)}
        before = len(server.accepted)
        connection = Connection("relay")
        outcome = connection.hand_over(an_email())
        connection.close()
        return outcome, len(server.accepted) > before

    yield hand_over
    for server in servers.values():
        server.__exit__(None, None, None)


@pytest.mark.usefixtures("pipelining")
class TestSMTP:
    @pytest.mark.parametrize("step", STEPS)
    def test_any_reply_at_any_step_has_an_outcome(self, dialogue, step):
        @configured(max_examples=8, deadline=None)
        @given(REPLIES)
        def ask(reply):
            assume(not (step == "STARTTLS" and reply.startswith(b"220")))  # it would have to be followed by TLS
            assume(not (step == "DATA" and ANSWERED_AHEAD.match(reply)))
            judge(step, reply, *dialogue(step, reply))

        ask()

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("reply", ODD_REPLIES, ids=lambda reply: repr(reply[:16])[2:-1])
    def test_an_odd_reply_is_no_answer(self, dialogue, step, reply):
        judge(step, reply, *dialogue(step, reply))

    @pytest.mark.parametrize("step", ["STARTTLS", "AUTH", "MAIL"])
    @pytest.mark.parametrize("reply", [b"250-yes\r\n550 no\r\n", b"5500 no\r\n", b"550 " + b"x" * 10_000 + b"\r\n"])
    def test_nonsense_is_the_providers_fault_and_not_ours(self, dialogue, step, reply):
        outcome, _taken = dialogue(step, reply)

        assert outcome.kind is Kind.UNAVAILABLE


def judge(step, reply, outcome, taken):
    assert outcome.kind in Kind
    if step != "DOT":
        # Nothing was handed over unless all of it was; and who has all of it said so in proper words.
        assert (outcome.kind is Kind.ACCEPTED) == taken, (outcome, reply[:80])
        assert taken or outcome.kind is not Kind.UNCERTAIN, (outcome, reply[:80])
    else:
        assert taken
        assert outcome.kind in IN_DOUBT or is_a_proper_no(reply), (outcome, reply[:80])
        assert outcome.kind is not Kind.ACCEPTED or re.match(rb"2\d\d(?!\d)", reply), (outcome, reply[:80])


class TestBackendsOfAnybody:
    @pytest.mark.parametrize("sent_count", ["abc", -1, [], object(), float("nan"), b"1"])
    def test_a_number_that_is_none_proves_nothing(self, sent_count):
        assert outcome_of_return(an_email(), sent_count).kind is Kind.UNCERTAIN

    @pytest.mark.parametrize("left", [5, "x", {"ann@example.org": None}, {"ann@example.org": ("abc", None)}, object()])
    @pytest.mark.parametrize("name", ["anymail_status", "mailengine_refusals", "mailengine_sha256"])
    def test_what_it_leaves_on_the_email_raises_nothing(self, name, left):
        email = an_email()
        setattr(email, name, left)

        assert isinstance(outcome_of_return(email, 1), Outcome)

    def test_recipients_that_are_none_are_in_doubt(self):
        email = an_email()
        email.anymail_status = SimpleNamespace(recipients={"ann@example.org": "sent"}, esp_response=None)

        assert outcome_of_return(email, 1).kind is Kind.UNCERTAIN
