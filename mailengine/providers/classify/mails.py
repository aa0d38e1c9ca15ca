"""Answers to one call for many mails that speak of each mail by itself: Postmark's and Mailjet's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from email.utils import parseaddr
from typing import Any

from ...outcomes import Outcome
from .http import HTTP, of_words
from .kinds import ACCEPTED, UNCERTAIN

UNREADABLE = replace(
    UNCERTAIN, code="unreadable", detail="What the answer says of this mail makes no sense.", phase=HTTP
)


def outcomes_of_mails(esp: str, answer: Any) -> list[tuple[str, Outcome]] | None:
    """The address, in lower case and empty where it isn't told, and the outcome of each mail that the answer names.

    In its order, which both promise to be that of the call:
    https://github.com/activecampaign/postmark-php/wiki/sending-batches. None where it speaks of the call as a whole.
    """
    body: Any = None
    with suppress(Exception):  # whatever is wrong with it, it names nobody
        body = json.loads(answer.text)
    if esp == "Postmark" and isinstance(body, list):
        return _each(body, _of_postmark)
    if esp != "Mailjet" or not isinstance(body, dict):
        return None
    if isinstance(body.get("Messages"), list):
        return _each(body["Messages"], _of_mailjet)
    # Mailjet says 400 to a call of which it takes the good mails: without an error of all, who knows?
    is_of_all = answer.status_code != 400 or "ErrorMessage" in body or "ErrorCode" in body
    return None if is_of_all else []


def _each(told: list[Any], read: Callable[[Mapping[str, Any]], tuple[str, Outcome]]) -> list[tuple[str, Outcome]]:
    outcomes = []
    for one in told:
        outcome = ("", UNREADABLE)
        with suppress(Exception):  # one that can't be read is in doubt, and the others are as they are
            outcome = read(one)
        outcomes.append(outcome)
    return outcomes


def _of_postmark(told: Mapping[str, Any]) -> tuple[str, Outcome]:
    address = parseaddr(told.get("To", ""))[1].lower()
    if told.get("ErrorCode", 0) != 0:
        return address, of_words("Postmark", 422, told)  # as it would be for this mail alone
    return address, replace(ACCEPTED, phase=HTTP, provider_message_id=str(told["MessageID"]))


def _of_mailjet(told: Mapping[str, Any]) -> tuple[str, Outcome]:
    if told["Status"] != "success":
        error = told["Errors"][0]
        return "", of_words("Mailjet", int(error.get("StatusCode", 400)), error)
    (to,) = told["To"]
    return to["Email"].lower(), replace(ACCEPTED, phase=HTTP, provider_message_id=str(to["MessageID"]))
