"""Replies of SMTP servers, and smtplib's errors.

RFC 5321, section 4.2, and RFC 3463."""

from __future__ import annotations

import re
import smtplib
from dataclasses import replace

from ...backends.dialogue import Phase, phase_of
from ...outcomes import Kind, Outcome
from .errors import OUR_HOST, causes_of, number_in
from .kinds import (
    ACCEPTED,
    AT_ONCE,
    BAD_ADDRESS,
    CUT_SHORT,
    DEFERRED,
    GREYLISTED,
    LOCAL,
    MISCONFIGURED,
    NOT_HERE,
    ONCE_MORE,
    OUT_OF_STEP,
    REFUSED,
    THROTTLED,
    UNAVAILABLE,
    UNCERTAIN,
    named,
    without_addresses,
)

OPENING = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
MAIL, RCPT, AWAIT = frozenset({Phase.MAIL}), frozenset({Phase.RCPT}), frozenset({Phase.AWAIT})
COMMANDS = frozenset({Phase.MAIL, Phase.RCPT, Phase.DATA})
CONTENT = frozenset({Phase.DATA, Phase.BODY, Phase.AWAIT})
SENDING = COMMANDS | CONTENT
# Only where a row needs words does it look at more than the code and the enhanced code right behind it. A server's
# words may be a stranger's: its address, or what the stranger's own server said to ours. So no words in a reply to
# RCPT do harm to more than that one message, and addresses are left out of all replies before they are looked at.
NO_ENHANCED_CODE = r"(?!\d\.\d+\.\d)"
LIMITED = rf"(4\.7\.\d+ |4\.3\.\d+ |[45]\.4\.5 |{NO_ENHANCED_CODE})"
"""Where words about a limit can be the server's own: with another code a content filter or a mailbox speaks."""
NOT_VERIFIED = r"((sender|address|domain|identity) (is )?not verified|verified sender identity|unverified sender)"
REPLIES: tuple[tuple[frozenset[Phase], str, Outcome], ...] = (
    # in these phases         a reply like "550 5.1.1 No such user"                  is
    (AWAIT, r"2\d\d ", ACCEPTED),
    (AWAIT, r"(?![45]\d\d )", UNCERTAIN),  # garbage, or no code at all
    (SENDING, r"(?![45]\d\d )", UNAVAILABLE),  # the same, and it has not got the mail yet
    (frozenset({Phase.GREETING}), r"554 ", MISCONFIGURED),  # our address is on a block list
    (frozenset({Phase.EHLO}), r"50[14] ", MISCONFIGURED),  # it dislikes our name
    (frozenset({Phase.STARTTLS, Phase.AUTH}), r"5", MISCONFIGURED),
    (OPENING, r"", UNAVAILABLE),
    # The server as a whole
    (SENDING, r"421 |452 4\.3\.1 ", UNAVAILABLE),
    (SENDING, r"5\d\d 5\.4\.5 ", THROTTLED),  # Google's for a day's quota
    (MAIL | CONTENT, rf"4\d\d {LIMITED}.*(throttl|sending rate)", THROTTLED),
    (MAIL | CONTENT, rf"[45]\d\d {LIMITED}.*\bdaily\b.*\b(quota|limit)\b", THROTTLED),
    (SENDING, r"530 |5\d\d 5\.7\.[89] ", MISCONFIGURED),  # log in first
    # Who we say we are
    (SENDING, r"5\d\d 5\.7\.(2[0-79]|30|515) ", MISCONFIGURED),  # SPF, DKIM, DMARC, PTR
    (SENDING, r"5\d\d 5\.1\.[78] ", MISCONFIGURED),  # the sender's address
    (CONTENT, rf"5\d\d {NO_ENHANCED_CODE}.*{NOT_VERIFIED}", MISCONFIGURED),
    # Behind a code only as the first words: a filter of content quotes what it dislikes, and that under 554 5.7.1.
    (CONTENT, rf"(?!554 5\.7\.1 )5\d\d \S+ ((the|from|email) )*{NOT_VERIFIED}", MISCONFIGURED),
    (MAIL, r"552 |5\d\d 5\.3\.4 ", NOT_HERE),  # larger than it takes, says SIZE
    # The address
    (RCPT | CONTENT, r"5\d\d 5\.1\.([1236]|10) ", BAD_ADDRESS),
    (RCPT, r"452 4\.5\.3 ", AT_ONCE),  # too many for one transaction
    (RCPT, r"45[012] 4\.7\.1 (?!.*relay)|45[01] 4\.2\.0 ", GREYLISTED),
    (SENDING, r"4\d\d .*gr[ea]y", GREYLISTED),
    # Perhaps the server's configuration, which somebody may be mending
    (RCPT, r"554 5\.7\.1 |5\d\d .*(relay|authenticat|sender|verified)", ONCE_MORE),
    # Out of step with the server: begin anew. That a parameter is wrong may be said of one odd address.
    (RCPT, r"50[14] ", ONCE_MORE),
    (COMMANDS, r"503 |50[0124] (?!5\.1\.)", OUT_OF_STEP),
    # The rest goes by the first digit
    (SENDING, r"4", DEFERRED),
    (MAIL, r"5", MISCONFIGURED),
    (RCPT, r"5", REFUSED),
    (CONTENT, r"5\d\d 5\.2\.2 ", REFUSED),  # mailbox full
    (CONTENT, r"552 |554 |5\d\d 5\.(3\.4|6\.\d+|7\.1) ", NOT_HERE),  # size, media, content
    (frozenset({Phase.DATA}), r"5", NOT_HERE),
    (SENDING, r"5", REFUSED),
)
CUT_OFF: dict[Phase | None, Outcome] = {
    # The connection broke, or the wait for a reply was too long.
    **dict.fromkeys(OPENING | COMMANDS, UNAVAILABLE),
    Phase.BODY: CUT_SHORT,  # without the final dot it is not kept; but who knows whether this very mail broke it
    Phase.AWAIT: UNCERTAIN,
    Phase.DONE: ACCEPTED,
    None: UNCERTAIN,
}
PHASE_OF_TYPE: tuple[tuple[type[smtplib.SMTPException], Phase], ...] = (
    # For replies that another SMTP backend got: smtplib's classes say at which step.
    (smtplib.SMTPConnectError, Phase.GREETING),
    (smtplib.SMTPHeloError, Phase.EHLO),
    (smtplib.SMTPAuthenticationError, Phase.AUTH),
    (smtplib.SMTPSenderRefused, Phase.MAIL),
    (smtplib.SMTPRecipientsRefused, Phase.RCPT),
    (smtplib.SMTPDataError, Phase.AWAIT),
)
NOT_ALL_SENT: dict[str, Phase] = {"please run connect() first": Phase.CONNECT, "Server not connected": Phase.BODY}
"""What smtplib says when nothing, or not even all of a command or of the content and its dot, could be sent."""


def of_smtp_error(error: smtplib.SMTPException, *, opening: bool) -> Outcome:
    phase = phase_of(error)
    if phase is Phase.DONE:
        return ACCEPTED
    if phase is None:
        phase = next((phase for known, phase in PHASE_OF_TYPE if isinstance(error, known)), None)
        phase = phase if opening else NOT_ALL_SENT.get(str(error), phase)
    if isinstance(error, smtplib.SMTPDataError) and phase_of(error) is None and 200 <= error.smtp_code <= 299:
        # To DATA smtplib takes 354 alone for a yes, and to the content 250 alone.
        if error.smtp_code == 250:
            return of_reply(Phase.DATA, 250, error.smtp_error)
        return replace(of_reply(Phase.AWAIT, error.smtp_code, error.smtp_error), kind=Kind.UNCERTAIN)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        # Not offered any more is what an attacker in between would make of it: never go on in clear.
        return named(MISCONFIGURED if opening or phase in OPENING else NOT_HERE, error)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return _of_refused_recipients(error)
    if isinstance(error, smtplib.SMTPResponseException) and type(error) is not smtplib.SMTPResponseException:
        return of_reply(phase or Phase.AWAIT, error.smtp_code, error.smtp_error)
    if isinstance(error, smtplib.SMTPResponseException) and phase in OPENING:
        return of_reply(phase, error.smtp_code, error.smtp_error)  # to STARTTLS
    if type(error) is smtplib.SMTPException and (opening or phase in OPENING):
        return named(MISCONFIGURED, error)  # no way to log in that both sides know
    if opening:
        phase = phase or Phase.CONNECT
    if phase not in {None, Phase.AWAIT, Phase.DONE} and number_in(causes_of(error)) in OUR_HOST:
        return named(LOCAL, error)
    return named(CUT_OFF[phase], error)


def _of_refused_recipients(error: smtplib.SMTPRecipientsRefused) -> Outcome:
    """The most hopeful of the replies decides for the mail as a whole; each address has its own in `refusals`."""
    refusals = {address: of_reply(Phase.RCPT, code, text) for address, (code, text) in error.recipients.items()}
    if len(refusals) == 1:
        return replace(next(iter(refusals.values())), retry_after_seconds=None)
    hopes = (Kind.UNAVAILABLE, Kind.MISCONFIGURED, Kind.THROTTLED, Kind.DEFERRED, Kind.REFUSED)
    if not refusals:
        return named(DEFERRED, error)
    best = min(refusals.values(), key=lambda outcome: hopes.index(outcome.kind) if outcome.kind in hopes else 0)
    # "At once" is for those left over when others were taken: who has been left over alone waits like any other.
    refusals = {address: replace(refusal, retry_after_seconds=None) for address, refusal in refusals.items()}
    return replace(best, address_is_bad=False, retry_after_seconds=None, refusals=refusals)


def of_reply(phase: Phase, code: int, text: bytes | str) -> Outcome:
    words = " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())
    found = re.match(r"([245]\.\d{1,3}\.\d{1,3})(?!\S) ?", words)
    enhanced = found[1] if found else ""
    reply = f"{code} {without_addresses(words)} "
    for phases, pattern, outcome in REPLIES:
        if phase in phases and re.match(pattern, reply, re.IGNORECASE | re.DOTALL):
            detail = words[found.end() :] if found else words
            return replace(outcome, code=f"{code} {enhanced}".strip(), detail=detail, phase=phase.value)
    return replace(UNCERTAIN, code=str(code), detail=words, phase=phase.value)
