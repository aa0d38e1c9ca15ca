"""A newsroom to tell the story in: articles, an issue, subscribers good and bad, and the people at the desk."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Permission, User
from django.db.models.functions import Upper

from mailengine.consent.suppress import suppress
from mailengine.models import Suppression
from project.newsroom.models import Article, Issue, Subscriber

FIRST_NAMES = ("Ada", "Bo", "Chidi", "Dana", "Eero", "Fatima", "Goran", "Hanna", "Ines", "Jun", "Kofi", "Noor", "Tove")
LAST_NAMES = ("Aalto", "Brandt", "Costa", "Dubois", "Eriksen", "Fischer", "Ito", "Kaya", "Lopez", "Novak", "Okafor")
DOMAINS = ("example.com", "example.net", "example.org")
MALFORMED = ("ada.example.org", "bo@@example.org", "chidi@", "dana at example.org")
EDITOR_MAY = ("add_messagejob", "view_messagejob", "view_message", "change_issue", "view_issue", "view_subscriber")
HEADLINES = (
    "Harbour bridge reopens a month early",
    "Council votes to keep the night buses",
    "School orchestra wins in Riga",
    "Bakers face the highest flour price in ten years",
    "New reading room for the old library",
    "Storm leaves 400 homes without power",
    "Two candidates left in the race for mayor",
    "The bees are back on the station roof",
    "Rents rise slower than feared",
    "Ferry to the islands will run all winter",
    "Swimming pool asks for volunteers",
    "A street that repairs its own chairs",
)
FEWEST = 50
"""Recipients; with fewer there would be no room for all that goes wrong."""


@dataclass(frozen=True)
class Newsroom:
    """What the story needs to know of it."""

    issue: Issue
    password: str
    """Of every user: `editor`, `admin` and `ann`."""
    refused: frozenset[str]
    """Subscribers whose address does not exist any more."""


def furnish(recipients: int, *, seed: int) -> Newsroom:
    """Fill an empty database with a newsroom whose audience has so many entries; the same for the same seed.

    Among them are addresses that nobody has any more, one that was unsubscribed, and what an import straight into the
    table left behind: people twice, the second time with their name and in capitals, and words that are no address.
    """
    chance = random.Random(seed)  # noqa: S311  Nothing here is a secret.
    twice = 2 + recipients // 1000
    people = list(_people(recipients - twice - len(MALFORMED), chance))
    again = [Subscriber(email=f"{person.name} <{person.email}>", name=person.name) for person in people[:twice]]
    Subscriber.objects.bulk_create([*people, *again, *(Subscriber(email=text) for text in MALFORMED)])
    Subscriber.objects.filter(email__endswith=">").update(email=Upper("email"))

    unsubscribed, *refused = chance.sample([person.email for person in people[twice:]], 3 + recipients // 200)
    suppress(unsubscribed, reason=Suppression.Reason.UNSUBSCRIBED, stream="bulk")
    password = secrets.token_urlsafe(9)
    _people_at_the_desk(password)
    return Newsroom(_issue(chance), password, frozenset(refused))


def _people(count: int, chance: random.Random) -> Iterator[Subscriber]:
    for number in range(1, count + 1):
        first, last = chance.choice(FIRST_NAMES), chance.choice(LAST_NAMES)
        email = f"{first}.{last}.{number}@{chance.choice(DOMAINS)}"
        yield Subscriber(email=email.lower(), name=f"{first} {last}")


def _people_at_the_desk(password: str) -> None:
    hashed = make_password(password)  # once for all three: it takes its time, on purpose
    User.objects.create(username="admin", password=hashed, is_staff=True, is_superuser=True)
    User.objects.create(username="ann", password=hashed, email="ann@daily.example")
    editor = User.objects.create(username="editor", password=hashed, is_staff=True)
    editor.user_permissions.set(Permission.objects.filter(codename__in=EDITOR_MAY))


def _issue(chance: random.Random) -> Issue:
    issue = Issue.objects.create(title="The Daily Example, morning edition", intro="Twelve stories before breakfast.")
    Article.objects.bulk_create(Article(issue=issue, headline=headline, body=_body(chance)) for headline in HEADLINES)
    return issue


def _body(chance: random.Random) -> str:
    who = ("The council", "A neighbour", "Nobody", "The harbour master", "Everybody at the market")
    did = ("knew it first", "asked for patience", "had expected as much", "called it a good start", "wrote a letter")
    return " ".join(f"{chance.choice(who)} {chance.choice(did)}." for _ in range(4))
