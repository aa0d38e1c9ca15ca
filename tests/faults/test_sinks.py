"""The sinks themselves, spoken to by smtplib: they write down what they take, and fail as they are told."""

from __future__ import annotations

import smtplib

import pytest

from .log import Copy, Log
from .sinks import CLOSE, HANG, RESET, Drip, Pause, SMTPSink, Step, every, nth, to

MAIL = b"X-Mailengine-Id: 7\r\nSubject: Hello\r\n\r\nGood morning.\r\n..\r\n"


@pytest.fixture
def log(tmp_path):
    log = Log(tmp_path / "log")
    yield log
    log.close()


@pytest.fixture
def sink(log):
    with SMTPSink("relay", log) as sink:
        yield sink


def send(sink, to="ann@example.org", content=MAIL, **options):
    with smtplib.SMTP(sink.host, sink.port, timeout=0.5) as smtp:
        return smtp.sendmail("desk@example.org", [to], content, **options)


def test_what_is_taken_is_on_the_disk(sink, log):
    send(sink)

    assert log.copies() == [Copy("7", "relay", ("ann@example.org",), 1)]
    assert (sink.accepted_count, sink.connection_count, sink.commands["MAIL"]) == (1, 1, 1)


def test_the_content_is_kept_as_it_was_sent_where_asked_for(log):
    with SMTPSink("relay", log, keeps_content=True) as sink:
        send(sink)

    ((message_id, content),) = sink.contents
    assert (message_id, content) == ("7", MAIL)


def test_a_long_mail_is_read_to_its_end(sink, log):
    send(sink, content=MAIL + b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 20_000)
    send(sink)

    assert [copy.message_id for copy in log.copies()] == ["7", "7"]


@pytest.mark.parametrize("step", [Step.CONNECT, Step.GREETING, Step.EHLO, Step.MAIL, Step.RCPT, Step.DATA, Step.DOT])
@pytest.mark.parametrize("ending", [HANG, CLOSE, RESET])
def test_a_dialogue_ends_at_any_step(sink, log, step, ending):
    sink.on(step, ending, accepts=False)

    with pytest.raises(OSError, match=r"."):  # smtplib's errors are OSErrors
        send(sink)
    assert log.copies() == []


def test_the_body_is_cut_after_some_bytes(sink, log):
    sink.on(Step.BODY, RESET, after_bytes=100_000)

    send(sink)
    with pytest.raises(OSError, match=r"."):
        send(sink, content=MAIL + (b"y" * 70 + b"\r\n") * 200_000)
    assert len(log.copies()) == 1


def test_mail_is_taken_and_nobody_told(sink, log):
    sink.on(Step.DOT, CLOSE, accepts=True)

    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(sink)
    assert len(log.copies()) == 1


def test_a_refusal_at_the_dot_takes_nothing(sink, log):
    sink.on(Step.DOT, "554 5.7.1 No")

    with pytest.raises(smtplib.SMTPDataError):
        send(sink)
    assert log.copies() == []


def test_a_script_plays_when_it_is_meant(sink):
    sink.on(Step.RCPT, "550 5.1.1 Who?", when=to("eve@example.org"))
    sink.on(Step.MAIL, "451 4.3.0 Later", when=nth(2))
    sink.on(Step.DATA, "452 4.3.1 Full", when=every(2))

    send(sink)
    for error in (smtplib.SMTPSenderRefused, smtplib.SMTPDataError):
        with pytest.raises(error):
            send(sink)
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(sink, to="eve@example.org")
    sink.heal()
    send(sink, to="eve@example.org")
    assert sink.fault_count == 3


def test_a_drip_and_garbage_and_a_pause(sink):
    sink.on(Step.GREETING, Drip("220 sink", 0.01))
    sink.on(Step.RCPT, Pause(0.01))
    send(sink)

    sink.on(Step.DOT, "what?")
    with pytest.raises(smtplib.SMTPDataError) as raised:
        send(sink)
    assert raised.value.smtp_code == -1


def test_a_script_may_be_a_function(sink):
    seen = []
    sink.on(Step.DOT, lambda moment: seen.append(moment))

    send(sink)

    assert (seen[0].message_id, seen[0].count, seen[0].recipients) == ("7", 1, ("ann@example.org",))


def test_a_connection_can_be_hung_up_between_messages(sink):
    sink.on(Step.BETWEEN, "421 4.3.2 Enough", CLOSE)
    with smtplib.SMTP(sink.host, sink.port, timeout=0.5) as smtp:
        smtp.sendmail("desk@example.org", ["ann@example.org"], MAIL)
        with pytest.raises((smtplib.SMTPSenderRefused, smtplib.SMTPServerDisconnected)):
            smtp.sendmail("desk@example.org", ["ann@example.org"], MAIL)


def test_credentials_are_asked_for_and_seen(log):
    with SMTPSink("relay", log, credentials=("desk", "secret")) as sink, smtplib.SMTP(sink.host, sink.port) as smtp:
        smtp.login("desk", "secret")
        smtp.sendmail("desk@example.org", ["ann@example.org"], MAIL)

    with SMTPSink("relay", log, credentials=("desk", "secret")) as sink, smtplib.SMTP(sink.host, sink.port) as smtp:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("desk", "wrong")
        assert sink.auth_lines


def test_down_and_up_again_on_the_same_port(sink):
    sink.down()
    with pytest.raises(ConnectionRefusedError):
        send(sink)

    sink.up()
    send(sink)
