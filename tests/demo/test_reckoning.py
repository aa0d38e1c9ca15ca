"""The receiving side's log against the ledger."""

from __future__ import annotations

import pytest

from project.demo.reckoning import Account, Copy, Entry, reckon

ANN = "ann@example.org"


def counts(copies, *attempts, is_sent=True):
    """How many addresses are lost, duplicated, unexpected and explained: copies by provider against attempts."""
    entry = Entry("1", ANN, is_sent, attempts)
    reckoning = reckon([Copy(provider, "1", ANN) for provider in copies], [entry])
    return tuple(
        len(found) for found in (reckoning.lost, reckoning.duplicated, reckoning.unexpected, reckoning.explained)
    )


ACCEPTED, UNCERTAIN, UNAVAILABLE = ("ses", "accepted"), ("ses", "uncertain"), ("ses", "unavailable")
AT_RELAY = ("relay", "accepted")
FINE, LOST, DUPLICATED, UNEXPECTED, EXPLAINED = (
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, 1, 0),
    (0, 0, 0, 1),
)


@pytest.mark.parametrize(
    ("copies", "attempts", "expected"),
    [
        (["ses"], [ACCEPTED], FINE),
        (["relay"], [UNAVAILABLE, AT_RELAY], FINE),
        (["ses"], [UNCERTAIN, ACCEPTED], FINE),
        ([], [ACCEPTED], LOST),
        ([], [], LOST),
        (["ses"], [ACCEPTED, AT_RELAY], LOST),
        (["ses", "ses"], [ACCEPTED], DUPLICATED),
        (["ses", "relay"], [ACCEPTED, AT_RELAY], DUPLICATED),
        (["ses", "ses", "ses"], [UNCERTAIN, ACCEPTED], DUPLICATED),
        (["relay"], [ACCEPTED], UNEXPECTED),
        (["ses", "relay"], [UNAVAILABLE, AT_RELAY], UNEXPECTED),
        (["ses", "ses"], [UNCERTAIN, ACCEPTED], EXPLAINED),
        (["ses", "ses"], [("ses", ""), ACCEPTED], EXPLAINED),
    ],
)
def test_mail_that_was_sent(copies, attempts, expected):
    assert counts(copies, *attempts) == expected


@pytest.mark.parametrize(
    ("copies", "attempts", "expected"),
    [
        ([], [], FINE),
        ([], [("ses", "refused")], FINE),
        ([], [UNCERTAIN], FINE),
        (["ses"], [UNCERTAIN], FINE),
        (["ses"], [], UNEXPECTED),
        (["ses"], [("ses", "refused")], UNEXPECTED),
    ],
)
def test_mail_that_was_not_sent(copies, attempts, expected):
    assert counts(copies, *attempts, is_sent=False) == expected


def test_a_copy_of_mail_that_the_database_does_not_know_is_unexpected():
    reckoning = reckon([Copy("ses", "1", ANN)], [])

    assert not reckoning.agrees
    assert str(reckoning.unexpected[0]) == f"{ANN} (1): received by ses; the database does not know this mail"


def test_a_copy_for_another_address_is_unexpected_and_the_right_one_lost():
    reckoning = reckon([Copy("ses", "1", "bob@example.org")], [Entry("1", ANN, True, (ACCEPTED,))])

    assert [found.address for found in reckoning.unexpected] == ["bob@example.org"]
    assert [found.address for found in reckoning.lost] == [ANN]


def test_the_case_of_an_address_makes_no_difference():
    assert reckon([Copy("ses", "1", "Ann@Example.org")], [Entry("1", ANN, True, (ACCEPTED,))]).agrees


def test_an_explained_second_copy_is_no_disagreement():
    reckoning = reckon([Copy("ses", "1", ANN)] * 2, [Entry("1", ANN, True, (UNCERTAIN, ACCEPTED))])

    assert reckoning.agrees
    assert str(reckoning.explained[0]).endswith("received by ses, ses; the ledger says ses uncertain, ses accepted")


def test_an_audience_is_accounted_for_entry_by_entry():
    account = Account(10, {"sent": 7, "dead": 0, "malformed": 1})

    assert account.unaccounted == 2
    assert str(account) == "10 = 7 sent + 1 malformed + 2 unaccounted"
