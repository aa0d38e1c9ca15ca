"""The oracle itself, fed logs and ledgers that somebody has tampered with: it complains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .case import Case, Run
from .log import Copy
from .oracle import Entry, Try, reckon

ACCEPTED, UNCERTAIN, REFUSED, OPEN = (Try("relay", outcome) for outcome in ("accepted", "uncertain", "refused", ""))
SENT = Entry("1", ("ann@example.org",), "sent", tries=(ACCEPTED,))
RESENT = Entry("2", ("bob@example.org",), "sent", tries=(UNCERTAIN, ACCEPTED))
REFUSED_MAIL = Entry("3", ("eve@example.org",), "dead", "refused: 550", tries=(REFUSED,))
KEPT = Entry("4", ("ida@example.org",), "uncertain", is_kept=True, tries=(UNCERTAIN, UNCERTAIN))
WAITING = Entry("5", ("joe@example.org",), "deferred", is_scheduled=True, tries=(Try("relay", "deferred"),))
LEDGER = [SENT, RESENT, REFUSED_MAIL, KEPT, WAITING]


def copy(entry: Entry, provider: str = "relay") -> Copy:
    return Copy(entry.id, provider, entry.addresses)


LOG = [copy(SENT), copy(RESENT), copy(RESENT), copy(KEPT)]


def test_what_agrees_agrees():
    reckoning = reckon(LOG, LEDGER, acked=["1", "2", "3", "4", "5"])

    assert reckoning.agrees
    assert (reckoning.message_count, reckoning.copy_count, reckoning.waiting) == (5, 4, 1)
    assert (reckoning.duplicates, reckoning.max_copies) == (1, 2)
    assert "1 duplicates (at most 2 copies of one)" in str(reckoning)


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        (LOG[1:], "lost", "no sink took it"),
        (LOG[1:], "ledger", "1 attempts accepted by relay, 0 copies there"),
        ([*LOG, copy(SENT)], "ledger", "2 copies at relay, 1 attempts that explain them"),
        ([*LOG, copy(REFUSED_MAIL)], "ledger", "1 copies at relay, 0 attempts that explain them"),
        ([*LOG, copy(WAITING)], "ledger", "1 copies at relay, 0 attempts that explain them"),
        ([*LOG[1:], copy(SENT, "other")], "ledger", "1 copies at other, 0 attempts that explain them"),
        ([*LOG, Copy("9", "relay", ("eve@example.org",))], "unexpected", "which the database does not know"),
        ([*LOG, Copy("", "relay", ("eve@example.org",))], "unexpected", "mail without an id"),
        ([*LOG[1:], Copy("1", "relay", ("eve@example.org",))], "unexpected", "for eve@example.org, whom it is not for"),
    ],
)
def test_a_log_that_was_tampered_with_is_noticed(log, kind, words):
    """A line removed, doubled, invented, moved to another provider, and made out to somebody else."""
    assert any(words in finding for finding in getattr(reckon(log, LEDGER), kind))


@pytest.mark.parametrize(
    ("before", "change", "kind", "words"),
    [
        (SENT, {"tries": ()}, "ledger", "sent, and no attempt was accepted"),
        (SENT, {"tries": (REFUSED,)}, "ledger", "1 copies at relay, 0 attempts that explain them"),
        (SENT, {"tries": (OPEN,)}, "ledger", "an attempt is still open"),
        (SENT, {"tries": (ACCEPTED, ACCEPTED)}, "ledger", "2 attempts accepted by relay, 1 copies there"),
        (SENT, {"status": "queued", "is_scheduled": True}, "ledger", "though an attempt was accepted"),
        (SENT, {"is_leased": True}, "ledger", "it is still leased"),
        (RESENT, {"tries": (ACCEPTED,)}, "ledger", "2 copies at relay, 1 attempts that explain them"),
        (REFUSED_MAIL, {"reason": ""}, "lost", "no sink took it"),
        (REFUSED_MAIL, {"status": "sent"}, "lost", "no sink took it"),
        (KEPT, {"is_kept": False}, "stuck", "nothing is scheduled"),
        (WAITING, {"is_scheduled": False}, "stuck", "nothing is scheduled"),
        (WAITING, {"is_scheduled": False}, "lost", "no sink took it"),
    ],
)
def test_a_ledger_that_lies_is_noticed(before, change, kind, words):
    ledger = [replace(entry, **change) if entry is before else entry for entry in LEDGER]

    assert any(words in finding for finding in getattr(reckon(LOG, ledger), kind))


def test_mail_that_vanished_with_its_row_is_lost():
    assert "9 was acknowledged" in reckon(LOG, LEDGER, acked=["9"]).lost[0]


def test_an_international_domain_is_the_same_in_the_envelope_and_in_the_database():
    entry = Entry("1", ("ann@bücher.example",), "sent", tries=(ACCEPTED,))

    assert reckon([Copy("1", "relay", ("ann@xn--bcher-kva.example",))], [entry]).agrees


def test_a_case_objects_to_more_duplicates_than_its_bound_and_to_mail_that_waits():
    case = Case("F-P04", "", lambda *_: None, 1, "1", lambda run: run.kills, (), quick=False, leaves_waiting=False)
    run = Run(1, kills=0, faults=0, reckoning=reckon(LOG, LEDGER), seconds=0)

    assert case.objections(run) == [
        "1 duplicates; at most 0 were to be: 1",
        "1 messages are still waiting after the drain",
    ]
    assert replace(case, leaves_waiting=True).objections(replace(run, kills=1)) == []
