"""One call of an ESP's API for many mails, by Anymail's real backends against a server that reads them as ESPs do."""

from __future__ import annotations

import json
import tracemalloc
from email.mime.text import MIMEText
from uuid import UUID

import pytest
from anymail.exceptions import AnymailCancelSend
from anymail.message import AnymailMessage
from anymail.signals import pre_send
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.utils import timezone

from mailengine.compat import mime_part
from mailengine.models import Content, Message
from mailengine.outcomes import Kind, Outcome
from mailengine.pipeline.compose import Words, compose
from mailengine.providers.batch import MOST, CallRefused, can_share_a_call, joined, most_in_a_call
from mailengine.providers.connection import Connection
from mailengine.testing import ESPServer
from mailengine.testing.esp_server import Answer, Fault, in_turn

from .judgements import judgement
from .test_fitting import WRITTEN_BY

ALL = {"brevo": 1000, "mailgun": 1000, "mailjet": 50, "postmark": 500, "resend": 100, "sendgrid": 1000}
"""The ESPs with such a call, and how many mails it takes."""
PNG_PART = b'Content-Type: image/png\nContent-Disposition: inline; filename="a.png"\nContent-ID: <a@b>\n\nUE5H'


@pytest.fixture
def server():
    with ESPServer() as server:
        yield server


@pytest.fixture(params=sorted(ALL))
def esp(request):
    return request.param


@pytest.fixture
def connection(server, esp, settings):
    settings.MAILERS = {"esp": server.mailer(esp, timeout=30)}
    connection = Connection("esp")
    yield connection
    connection.close()


def only(*esps):
    return pytest.mark.parametrize("esp", esps, indirect=True)


def an_id(number):
    return f"0190{number:04}-0000-7000-8000-000000000000"


def an_email(number=0, **changes):
    """A mail as `compose()` makes it, with the headers of bulk."""
    to = [f"Reader {number} <reader.{number}@example.org>"]
    email = EmailMultiAlternatives("Grüße", "Hello.", "News <news@example.org>", to)
    email.attach_alternative("<p>Hello.</p>", "text/html")
    email.boundary = f"boundary-{number}"
    email.extra_headers = {
        "Message-ID": f"<{an_id(number)}@example.org>",
        "Date": "Sun, 22 Nov 2026 10:00:00 +0000",
        "List-Id": "<news.example.org>",
        "List-Unsubscribe": f"<https://example.org/u/{number}?a=1&b=%25>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "X-Mailengine-Id": an_id(number),
    }
    email.metadata = {"mailengine_id": an_id(number)}
    email.tags = ["issue-7"]
    vars(email).update(changes)
    return email


def emails(count):
    return [an_email(number) for number in range(count)]


def address(number):
    return f"reader.{number}@example.org"


def judgements(outcomes):
    return [judgement(outcome) for outcome in outcomes]


# How many


def test_how_many_mails_an_esp_takes_in_a_call(connection, esp):
    assert most_in_a_call("esp") == ALL[esp]
    assert most_in_a_call("esp", an_email()) == ALL[esp]


@pytest.mark.parametrize("backend", ["anymail.backends.amazon_ses.EmailBackend", "mailengine.backends.SMTPBackend"])
def test_without_such_a_call_it_is_one(settings, backend):
    settings.MAILERS = {"esp": {"BACKEND": backend}}

    assert (most_in_a_call("esp"), most_in_a_call("nobody")) == (1, 1)


def with_a_file(size):
    email = an_email()
    email.attach("a.bin", bytes(size), "application/octet-stream")
    return email


def test_large_mail_goes_with_fewer_where_each_is_written_in_full(connection, esp):
    counts = {size: most_in_a_call("esp", with_a_file(size)) for size in (1_000_000, 100_000_000)}

    assert counts == {
        "postmark": {1_000_000: 7, 100_000_000: 1},
        "resend": {1_000_000: 1, 100_000_000: 1},  # which would drop the file
    }.get(esp, {1_000_000: ALL[esp], 100_000_000: ALL[esp]})


@only("postmark")
def test_long_words_count_too(connection):
    assert most_in_a_call("esp", an_email(body="ü" * 100_000)) == 16  # as JSON writes them
    assert most_in_a_call("esp", an_email(body="a" * 97_000)) == 99


@only("resend")
def test_what_resend_would_send_at_once_goes_by_itself(connection):
    assert most_in_a_call("esp", an_email(send_at="2026-12-24T08:00:00Z")) == 1


# Who may share


def test_mails_that_differ_in_recipient_headers_and_metadata_share_a_call():
    assert can_share_a_call(an_email(1), an_email(2))


def composed(number, text="Hello.", **content):
    message = Message(id=UUID(an_id(number)), recipient=address(number), stream="bulk")
    message.created_at = timezone.now()
    words = Content(subject="Hello", text=text, from_email="news@example.org", headers={"X-Issue": "7"}, **content)
    return compose(message, Words(words, []))


def test_mails_as_they_are_composed_share_a_call():
    assert can_share_a_call(composed(1), composed(2))
    assert not can_share_a_call(composed(1), composed(2, text="Good bye."))


def test_one_that_a_backend_left_its_status_on_shares_it_too():
    assert can_share_a_call(an_email(1, anymail_status="old", mailengine_refusals={}), an_email(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Hi"},
        {"body": "Hi"},
        {"alternatives": []},
        {"from_email": "other@example.org"},
        {"reply_to": ["desk@example.org"]},
        {"cc": ["bob@example.org"]},
        {"bcc": ["bob@example.org"]},
        {"to": []},
        {"to": ["a@example.org", "b@example.org"]},
        {"to": ["a@bücher.example"]},
        {"to": ["Somebody else <READER.1@example.org>"]},
        {"tags": ["other"]},
        {"metadata": {}},
        {"metadata": {"mailengine_id": "2", "more": 1}},
        {"envelope_sender": "bounce@example.org"},
        {"esp_extra": {"a": 1}},
        {"track_clicks": False},
        {"send_at": "2026-12-24"},
        {"template_id": "7"},
        {"encoding": "iso-8859-1"},
        {"content_subtype": "html"},
        {"merge_data": {}},
        {"merge_headers": {}},
        {"merge_metadata": {}},
        {"attachments": [("a.txt", "A", "text/plain")]},
        {"extra_headers": {}},
        {"anything": "that a project has put there"},
    ],
    ids=repr,
)
def test_mails_that_differ_in_more_do_not(changes):
    one, other = an_email(1), an_email(2, **changes)

    assert not can_share_a_call(one, other)
    assert not can_share_a_call(other, one)


@pytest.mark.parametrize("name", ["From", "to", "Cc", "BCC", "Reply-To", "Sender"])
def test_mails_whose_headers_address_them_do_not(name):
    headers = {**an_email().extra_headers, name: "x@example.org"}

    assert not can_share_a_call(an_email(1, extra_headers=headers), an_email(2, extra_headers=headers))


@pytest.mark.parametrize("changes", [{"subject": "Hi %recipient.name%"}, {"body": "%recipient_email%"}])
def test_words_that_mailgun_would_fill_in_do_not(changes):
    assert not can_share_a_call(an_email(1, **changes), an_email(2, **changes))


def test_mails_of_two_classes_do_not():
    other = AnymailMessage()
    vars(other).update(vars(an_email(2)))

    assert not can_share_a_call(an_email(1), other)


def new_file():
    return ("a.bin", bytes(bytearray(b"abc")), "application/octet-stream")


def mail_in_parts():
    part = MIMEText("Hello")
    part["X-Part"] = "1"
    return part


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (new_file, ("b.bin", b"abc", "application/octet-stream")),
        (new_file, ("a.bin", b"abd", "application/octet-stream")),
        (lambda: mime_part(PNG_PART), mime_part(PNG_PART.replace(b"<a@b>", b"<b@b>"))),
        (lambda: mime_part(PNG_PART), mime_part(PNG_PART.replace(b"UE5H", b"UE5I"))),
    ],
)
def test_the_same_files_made_twice_are_the_same(make, other):
    assert can_share_a_call(an_email(1, attachments=[make()]), an_email(2, attachments=[make()]))
    assert not can_share_a_call(an_email(1, attachments=[make()]), an_email(2, attachments=[other]))


# What is sent


def test_nobody_sees_another(server, connection, esp):
    """Each is a mail of its own, with its own headers and metadata, and every other mail's name is nowhere in it."""
    outcomes = connection.hand_over_together(emails(3))

    assert judgements(outcomes) == ["accepted"] * 3
    assert server.calls == 1
    assert [mail.recipients for mail in server.accepted] == [(address(n),) for n in range(3)]
    own = WRITTEN_BY.get(esp, set())
    for number, mail in enumerate(server.accepted):
        assert mail.mailengine_id == an_id(number)
        assert mail.metadata["mailengine_id"] == an_id(number)
        arrived = {name.lower(): value for name, value in mail.own_headers.items()}
        given = {name.lower(): value for name, value in an_email(number).extra_headers.items()}
        assert {name: arrived.get(name) for name in given} == {
            name: None if name in own else value for name, value in given.items()
        }
        for other in {0, 1, 2} - {number}:
            told = json.dumps([mail.own_headers, mail.metadata])
            assert f"{address(other)}" not in told
            assert an_id(other) not in told


def test_the_call_is_one_that_the_esp_splits(server, connection, esp):
    connection.hand_over_together(emails(2))

    fields = server.accepted[0].fields
    to = {
        "brevo": lambda: [version["to"] for version in fields["messageVersions"]],
        "mailgun": lambda: [[key] for key in json.loads(fields["recipient-variables"][0])],
        "mailjet": lambda: [message["To"] for message in fields["Messages"]],
        "postmark": lambda: [[message["To"]] for message in fields],
        "resend": lambda: [message["to"] for message in fields],
        "sendgrid": lambda: [one["to"] for one in fields["personalizations"]],
    }[esp]()
    assert [len(each) for each in to] == [1, 1]
    assert [address(number) in str(each) for number, each in enumerate(to)] == [True, True]
    common = fields if isinstance(fields, dict) else {}
    assert not {"to", "To", "cc", "Cc", "bcc", "Bcc"} & common.keys() - ({"to"} if esp == "mailgun" else set())
    assert not {"to", "To", "Headers"} & common.get("Globals", {}).keys()


def test_words_files_and_options_are_those_of_each(server, connection, esp):
    file = ("Über.bin", b"\x00\xff", "application/octet-stream")
    if esp == "resend":
        file = ()
    changes = {"reply_to": ["desk@example.org"], "attachments": [file] if file else []}
    connection.hand_over_together([an_email(number, **changes) for number in range(2)])
    connection.hand_over(an_email(2, **changes))

    both, alone = server.accepted[:2], server.accepted[2]
    for mail in both:
        assert mail.attachments == alone.attachments
        assert [file.content for file in mail.attachments] == ([b"\x00\xff"] if file else [])
    told = json.dumps(both[0].fields, default=str, ensure_ascii=False)
    for words in ("Grüße", "Hello.", "<p>Hello.</p>", "news@example.org", "desk@example.org", "issue-7"):
        assert words in told


def test_merging_is_asked_for_even_where_there_is_nothing_to_merge(settings, server, connection, esp):
    """Without it Anymail would write one mail to all of them."""
    bare = [EmailMessage("Hello", "Hello.", "news@example.org", [address(number)]) for number in range(2)]

    call = joined(bare, "esp")
    outcomes = connection.hand_over_together(bare)

    assert (call.merge_headers, call.merge_metadata) == ({address(0): {}, address(1): {}},) * 2
    assert judgements(outcomes) == ["accepted"] * 2
    assert [mail.recipients for mail in server.accepted] == [(address(0),), (address(1),)]


def test_the_mails_stay_as_they_were(connection):
    before, mails = emails(2), emails(2)

    connection.hand_over_together(mails)

    for email, was in zip(mails, before, strict=True):
        assert vars(email) == vars(was)


def test_a_call_for_one_is_none(server, connection):
    assert connection.hand_over_together([]) == []
    assert judgements(connection.hand_over_together([an_email()])) == ["accepted"]
    assert server.accepted[0].own_headers["X-Mailengine-Id"] == an_id(0)


def test_as_many_as_it_takes(server, connection, esp):
    outcomes = connection.hand_over_together(emails(ALL[esp]))

    assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
    assert (server.calls, len(server.accepted)) == (1, ALL[esp])
    assert [mail.mailengine_id for mail in server.accepted] == [an_id(number) for number in range(ALL[esp])]


# What is not sent


def refused_together(outcomes):
    """Whether each is to go by itself; whoever doesn't know that word lets it wait, and charges nobody."""
    return all(isinstance(outcome, CallRefused) and judgement_of(outcome) == "local" for outcome in outcomes)


def judgement_of(outcome):
    return judgement(Outcome(**{name: getattr(outcome, name) for name in ("kind", "is_local", "address_is_bad")}))


def test_more_than_it_takes_are_not_sent(server, connection, esp):
    outcomes = connection.hand_over_together(emails(ALL[esp] + 1))

    assert len(outcomes) == ALL[esp] + 1
    assert refused_together(outcomes)
    assert server.calls == 0


@pytest.mark.parametrize(
    "others", [[an_email(1), an_email(1)], [an_email(1), an_email(2, body="Hi")]], ids=["twice", "other words"]
)
def test_mails_that_cannot_share_it_are_not_sent(server, connection, others):
    outcomes = connection.hand_over_together([an_email(0), *others])

    assert refused_together(outcomes)
    assert server.calls == 0


def test_by_smtp_there_is_no_such_call(settings):
    options = {"host": "127.0.0.1", "port": 9}
    settings.MAILERS = {"esp": {"BACKEND": "mailengine.backends.SMTPBackend", "OPTIONS": options}}

    assert refused_together(Connection("esp").hand_over_together(emails(2)))


# What became of each


@only("postmark", "mailjet")
def test_the_bad_one_alone_is_refused(server, connection):
    server.inactive = {address(1)}

    outcomes = connection.hand_over_together(emails(4))

    assert judgements(outcomes) == ["accepted", "refused, bad address", "accepted", "accepted"]
    assert [mail.recipients for mail in server.accepted] == [(address(0),), (address(2),), (address(3),)]


@only("postmark", "mailjet")
def test_all_bad_ones_are_refused(server, connection):
    server.inactive = {address(0), address(1)}

    assert judgements(connection.hand_over_together(emails(2))) == ["refused, bad address"] * 2


@only("brevo", "mailgun", "resend", "sendgrid")
def test_where_one_bad_mail_refuses_them_all_each_is_to_go_by_itself(server, connection):
    server.inactive = {address(1)}
    mails = emails(3)

    outcomes = connection.hand_over_together(mails)

    assert refused_together(outcomes)
    assert {outcome.code.split()[0] for outcome in outcomes} == {"HTTP"}
    assert not server.accepted
    singly = [connection.hand_over(email).kind for email in mails]
    assert singly == [Kind.ACCEPTED, Kind.REFUSED, Kind.ACCEPTED]


@pytest.mark.parametrize("status", [400, 408, 409, 413, 422])
def test_a_call_that_is_refused_blames_none_of_its_mails(server, connection, status):
    server.behave = in_turn(Answer(status, "No"))

    outcomes = connection.hand_over_together(emails(2))

    assert refused_together(outcomes)
    assert [outcome.code for outcome in outcomes] == [f"HTTP {status}"] * 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401), "misconfigured"),
        (Answer(403), "misconfigured"),
        (Answer(429, headers={"Retry-After": "7"}), "throttled 7 s"),
        (Answer(503), "unavailable"),
        (Answer(500), "uncertain"),
        (Answer(502, "<html>"), "uncertain"),
    ],
)
def test_a_clean_failure_of_the_call_is_that_of_each(server, connection, answer, words):
    server.behave = in_turn(answer)

    assert judgements(connection.hand_over_together(emails(3))) == [words] * 3
    assert server.calls == 1


def test_a_connection_that_is_refused_is_clean(server, connection):
    server.down()

    assert judgements(connection.hand_over_together(emails(2))) == ["unavailable"] * 2


@pytest.mark.parametrize("fault", [Fault.ACCEPT_AND_HANG_UP, Fault.HANG_UP, Fault.ACCEPT_IN_SILENCE], ids=str)
def test_an_answer_that_is_lost_leaves_each_in_doubt(server, connection, fault, settings, esp):
    settings.MAILERS = {"esp": server.mailer(esp, timeout=0.5)}
    server.behave = in_turn(fault)

    assert judgements(connection.hand_over_together(emails(2))) == ["uncertain"] * 2
    assert server.calls == 1
    assert len(server.accepted) == (0 if fault is Fault.HANG_UP else 2)


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '"a"', "[[", '{"Messages": []}', '{"data": []}'])
def test_a_yes_that_does_not_mention_them_leaves_each_in_doubt(server, connection, esp, body):
    server.behave = in_turn(Answer(200, json.loads(body) if body != "<html>" and body != "[[" else body))

    expected = "accepted" if esp == "sendgrid" else "uncertain"  # whose status says it all
    assert judgements(connection.hand_over_together(emails(2))) == [expected] * 2


OK = {"ErrorCode": 0, "Message": "OK"}
PARTS = {
    "postmark, shorter": ("postmark", [{**OK, "MessageID": "a", "To": address(1)}], ["uncertain", "accepted"]),
    "postmark, in another order": (
        "postmark",
        [{**OK, "MessageID": str(n), "To": f"Reader <{address(n)}>"} for n in (1, 0)],
        ["accepted", "accepted"],
    ),
    "postmark, garbage": ("postmark", [7, {**OK, "MessageID": "a", "To": address(1)}], ["uncertain", "accepted"]),
    "postmark, no id": ("postmark", [OK, {**OK, "MessageID": "a", "To": address(1)}], ["uncertain", "accepted"]),
    "postmark, of the sender": (
        "postmark",
        [{"ErrorCode": 400, "Message": "Sender"}, {**OK, "MessageID": "a", "To": address(1)}],
        ["misconfigured", "accepted"],
    ),
    "postmark, of the mail": (
        "postmark",
        [{"ErrorCode": 300, "Message": "Invalid 'From' address"}, {**OK, "MessageID": "a", "To": address(1)}],
        ["refused", "accepted"],
    ),
    "postmark, an invalid address": (
        "postmark",
        [{"ErrorCode": 300, "Message": "Invalid 'To' address: 'x'."}, {**OK, "MessageID": "a", "To": address(1)}],
        ["refused, bad address", "accepted"],
    ),
    "mailjet, shorter": (
        "mailjet",
        {"Messages": [{"Status": "success", "To": [{"Email": address(1), "MessageID": 7}]}]},
        ["uncertain", "accepted"],
    ),
    "mailjet, garbage": (
        "mailjet",
        {"Messages": [{"Status": "error"}, {"Status": "success", "To": [{"Email": address(1), "MessageID": 7}]}]},
        ["uncertain", "accepted"],
    ),
    "resend, shorter": ("resend", {"data": [{"id": "a"}]}, ["uncertain", "uncertain"]),
    "brevo, shorter": ("brevo", {"messageIds": ["a"]}, ["uncertain", "uncertain"]),
}


@pytest.mark.parametrize(("esp", "body", "words"), PARTS.values(), ids=PARTS, indirect=["esp"])
def test_what_the_answer_does_not_mention_is_in_doubt(server, connection, body, words):
    server.behave = in_turn(Answer(200, body))

    assert judgements(connection.hand_over_together(emails(2))) == words


@only("mailjet")
@pytest.mark.parametrize("body", [{"what": 1}, {"Messages": "?"}])
def test_a_400_of_mailjet_may_be_said_of_some(server, connection, body):
    """It says 400 as soon as one mail is bad, and takes the others."""
    server.behave = in_turn(Answer(400, body))

    assert judgements(connection.hand_over_together(emails(2))) == ["uncertain"] * 2


def test_each_has_the_id_that_its_events_carry(connection, esp):
    ids = [outcome.provider_message_id for outcome in connection.hand_over_together(emails(3))]

    assert all(ids)
    assert len(set(ids)) == (1 if esp == "mailgun" else 3)


def test_one_withdrawn_by_the_project_is_withdrawn_by_itself(server, connection):
    """A receiver of pre_send sees the call, and then each mail that it would not have."""

    def withdraw(message, **_kwargs):
        if any(address(1) in to for to in message.to):
            raise AnymailCancelSend("not to this one")

    pre_send.connect(withdraw, weak=False)
    try:
        mails = emails(2)
        outcomes = connection.hand_over_together(mails)
        singly = judgements(map(connection.hand_over, mails))
    finally:
        pre_send.disconnect(withdraw)

    assert refused_together(outcomes)
    assert singly == ["accepted", "cancelled"]


@only("resend")
def test_a_call_with_a_key_is_taken_once(server, connection):
    server.behave = in_turn(Fault.ACCEPT_AND_HANG_UP)
    mails = emails(2)

    lost = connection.hand_over_together(mails, key="batch-1")
    again = connection.hand_over_together(mails, key="batch-1")

    assert [(outcome.kind, outcome.is_repeatable) for outcome in lost] == [(Kind.UNCERTAIN, True)] * 2
    assert judgements(again) == ["accepted"] * 2
    assert (server.calls, len(server.accepted)) == (2, 2)


def test_calls_and_single_mails_share_a_connection(server, connection):
    for _ in range(5):
        connection.hand_over_together(emails(2))
        connection.hand_over(an_email())

    assert server.connection_count == 1


# Memory


SIZE = 1_000_000


def test_a_file_is_not_held_once_for_each_recipient(server, connection, esp):
    content = bytes(SIZE)
    first = an_email(0, attachments=[("a.bin", content, "application/octet-stream")])
    count = most_in_a_call("esp", first)
    mails = [first, *(an_email(number, attachments=list(first.attachments)) for number in range(1, count))]
    tracemalloc.start()
    try:
        outcomes = connection.hand_over_together(mails)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
    assert len(server.accepted) == count
    # Of a call to Postmark the client has 10 MB twice, and the server, which is in this process, as often.
    assert peak < (60 if esp == "postmark" else 40) * SIZE


def test_the_limits_are_those_of_esps_that_we_know():
    assert {name.lower() for name in MOST} == set(ALL)
