"""The `MAILENGINE` setting as frozen values: every name, its unit, its default.

Read it with `get_settings()` at the time of use, so that tests override it. What is wrong in it is collected as
`problems()`, which the system checks report; nothing here raises for a bad key, so that a typing error can't stop mail.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any

from django.conf import settings as django_settings

from .addresses import is_among, parse_address
from .circuit import Policy
from .errors import InvalidAddress, UnknownProvider, UnknownStream, did_you_mean
from .rate import Limit, limits_of

DAY = 86_400
URGENT = 0
"""`Priority.URGENT`, needed below the models."""

STRATEGIES = ("ordered", "sticky", "weighted", "spread")
UNCERTAIN_POLICIES = ("resend", "hold")
LATER = {"UNDO_SECONDS"}
"""Names of streams that the documentation promises for a later version: known, but without effect so far."""


class Mode(str, Enum):
    """What an operator lets a provider do."""

    ENABLED = "enabled"  # it is in use
    DRAINING = "draining"  # it gets no new mail, but what only it may carry
    DISABLED = "disabled"  # it gets nothing, and what only it may carry waits
    RETIRED = "retired"  # as if it were not configured

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Switches:
    """What an operator has set for a provider, over what the settings say; None: as they say."""

    mode: Mode = Mode.ENABLED
    weight: int | None = None
    rate: tuple[Limit, ...] | None = None
    is_added: bool = False
    """The settings don't name it as a provider, and it is one all the same."""


@dataclass(frozen=True)
class ProviderPolicy:
    """What `MAILENGINE["PROVIDERS"][alias]` says of one provider."""

    alias: str
    connections: int | None = None
    """Sends in flight at once in one process; None: as many as the process has."""
    weight: int = 1
    """Its share among the healthy, with the strategy `"weighted"`; with 0 it only stands in for others."""
    allowed_senders: tuple[str, ...] | None = None
    """Addresses (ann@example.org) and domains (@example.org) that it may send as; None: any."""
    rate: tuple[Limit, ...] = ()
    """How many handovers it may be given, by all hosts together; empty: any number."""
    reserve: float = 0.1
    """The part of its limits that mail of priority BULK leaves to other mail."""
    batch: int = 1
    """How many messages of a job, saying the same, one call of its API may carry."""
    warm_up: tuple[int, ...] = ()
    """The most handovers on its first day in use, on its second, and so on; after the last, any number."""
    mode: Mode = Mode.ENABLED
    """Not a setting, but a switch."""

    def may_send_as(self, address: str) -> bool:
        """Whether it may, by the `key` of an `Address`."""
        return self.allowed_senders is None or is_among(address, self.allowed_senders)


@dataclass(frozen=True)
class StreamPolicy:
    """What `MAILENGINE["STREAMS"][name]` says of one kind of mail."""

    name: str
    priority: int
    providers: tuple[str, ...] | None = None
    """Aliases in order of preference; None: all providers."""
    strategy: str | None = None
    """None: as `MAILENGINE["STRATEGY"]`."""
    failover: bool = True
    """Whether others stand in for the provider that it prefers; with False, mail waits for that one."""
    share: float = 0.0
    """The part of all handovers that it gets while it has mail due, though other mail goes before it."""
    lifetime_seconds: float = 5 * DAY
    """How long after its first deferral a message is still tried."""
    kick: bool = False
    """Whether the process that queued its mail sends it at once, by a thread of its own, where no worker is at work."""
    uncertain: str = "resend"
    uncertain_window_seconds: float | None = None
    default_window_seconds: float = 3_600


@dataclass(frozen=True)
class ApiPolicy:
    """What `MAILENGINE["API"]` says of the HTTP API: the most that one request may hold, and when it has to wait."""

    email_bytes: int = 204_800
    """The body of `POST /email/send`."""
    body_bytes: int = 25_000_000
    """The body of any other request."""
    words_bytes: int = 1_048_576
    """All words of one mail, in UTF-8, with its headers, metadata, tags and context as JSON."""
    mails: int = 10
    """Mails in one `POST /mail`."""
    messages: int = 1_000
    """Mails in one `POST /api/v1/messages`."""
    to: int = 100
    """And in any mail: recipients."""
    cc: int = 100
    bcc: int = 100
    headers: int = 50
    attachments: int = 20
    recipients: int = 100_000
    """The recipients that one job may be given, other than by an audience."""
    urgent_per_hour: int = 5
    """Mails of priority HIGH or URGENT that one client may have sent to one address in an hour."""
    queue: int = 1_000_000
    """Messages that wait, above which less urgent mail than NORMAL is refused; above twice as many, NORMAL as well."""


@dataclass(frozen=True)
class Settings:
    """The whole of `MAILENGINE`, with its defaults."""

    providers: Mapping[str, ProviderPolicy] = field(default_factory=dict)
    strategy: str = "ordered"
    streams: Mapping[str, StreamPolicy] = field(default_factory=dict)
    connections: int = 8
    claim_batch: int = 0  # 0: twice `connections`
    lease_seconds: float = 240
    send_deadline_seconds: float = 60
    max_attempts: int = 35
    backoff_first_seconds: float = 60
    backoff_longest_seconds: float = 14_400
    unhealthy_threshold: int = 3
    healthy_threshold: int = 2
    probe_interval_seconds: float = 60
    uncertain_window_seconds: float | None = None
    alert_mailer: str | None = None
    should_probe: str | None = None
    """The dotted path of a function like `mailengine.circuit.should_probe`, which is used without it."""
    classifier: str | None = None
    """The dotted path of a function that may judge otherwise what a handover came to."""
    api: ApiPolicy = ApiPolicy()
    takes_added: bool = True
    """Not a setting: whether providers that an operator has added are among these, too."""

    @property
    def circuit_policy(self) -> Policy:
        return Policy(
            unhealthy_threshold=self.unhealthy_threshold,
            healthy_threshold=self.healthy_threshold,
            probe_interval_seconds=self.probe_interval_seconds,
            send_deadline_seconds=self.send_deadline_seconds,
        )

    @property
    def rows_in_a_claim(self) -> int:
        """So many that the calls which carry most are full."""
        largest_call = max((policy.batch for policy in self.providers.values()), default=1)
        return max(self.claim_batch or 2 * self.connections, largest_call)

    @property
    def lease_margin_seconds(self) -> float:
        """What a lease must outlast the deadline of a send by, so that its holder can still record what happened."""
        return min(15.0, self.lease_seconds / 10)

    @property
    def trusted_seconds(self) -> float:
        """How long after a claim a handover may still begin: it must be over before the lease is."""
        return self.lease_seconds - self.lease_margin_seconds - self.send_deadline_seconds

    def under(self, switches: Mapping[str, Switches], *, known: Collection[str]) -> Settings:
        """These settings as an operator's switches leave them: a retired provider is gone, added ones come last.

        `known` are the aliases that can be added: those that this process has an entry of MAILERS for.
        """
        added = [alias for alias, s in switches.items() if s.is_added and alias in known and self.takes_added]
        policies = {**self.providers}
        policies |= {alias: ProviderPolicy(alias) for alias in added if alias not in policies}
        for alias, switch in switches.items():
            if alias in policies and switch.mode is Mode.RETIRED:
                del policies[alias]
            elif alias in policies:
                policies[alias] = _switched(policies[alias], switch)
        return self if policies == self.providers else replace(self, providers=policies)

    def provider(self, alias: str) -> ProviderPolicy:
        try:
            return self.providers[alias]
        except KeyError:
            raise UnknownProvider(alias, known=self.providers) from None

    def stream(self, name: str) -> StreamPolicy:
        try:
            return self.streams[name]
        except KeyError:
            raise UnknownStream(name, known=self.streams) from None

    def policy_for(self, name: str) -> StreamPolicy:
        """The stream's policy; for mail of a stream that the settings no longer have, that of `transactional`.

        Mail outlives settings: what was queued is sent, whatever became of its stream's entry.
        """
        return self.streams.get(name) or self.streams["transactional"]

    def aliases_for(self, stream: str) -> tuple[str, ...]:
        """The providers that may carry this stream, in order of preference."""
        chosen = self.policy_for(stream).providers
        return tuple(self.providers) if chosen is None else tuple(alias for alias in chosen if alias in self.providers)

    def strategy_for(self, stream: str) -> str:
        return self.policy_for(stream).strategy or self.strategy

    def uncertain_window(self, stream: str, *, priority: int) -> float:
        """Seconds to wait for proof after an uncertain handover, before the message is sent once more or kept."""
        policy = self.policy_for(stream)
        if policy.uncertain_window_seconds is not None:
            return policy.uncertain_window_seconds
        if self.uncertain_window_seconds is not None:
            return self.uncertain_window_seconds
        return 30 if priority <= URGENT else policy.default_window_seconds


def _switched(policy: ProviderPolicy, switch: Switches) -> ProviderPolicy:
    weight = policy.weight if switch.weight is None else switch.weight
    rate = policy.rate if switch.rate is None else switch.rate
    return replace(policy, mode=switch.mode, weight=weight, rate=rate)


STREAMS = {
    "transactional": StreamPolicy("transactional", priority=20, default_window_seconds=600),
    "bulk": StreamPolicy("bulk", priority=40, share=0.2),
}
"""The two that exist from the start; the project's own merge over them."""

SHORTEST_TRUST_SECONDS = 5.0
"""A claimed batch that has less time than this to be begun may never be."""

NUMBERS = {
    "CONNECTIONS": 1,
    "WEIGHT": 0,
    "RESERVE": 0,
    "SHARE": 0,
    "BATCH": 1,
    "CLAIM_BATCH": 1,
    "LEASE_SECONDS": 1,
    "SEND_DEADLINE_SECONDS": 0.1,
    "MAX_ATTEMPTS": 1,
    "BACKOFF_FIRST_SECONDS": 0,
    "BACKOFF_LONGEST_SECONDS": 0,
    "UNHEALTHY_THRESHOLD": 1,
    "HEALTHY_THRESHOLD": 1,
    "PROBE_INTERVAL_SECONDS": 0,
    "UNCERTAIN_WINDOW_SECONDS": 0,
    "LIFETIME_SECONDS": 0,
    "EMAIL_BYTES": 1,
    "BODY_BYTES": 1,
    "WORDS_BYTES": 1,
    "MAILS": 1,
    "MESSAGES": 1,
    "TO": 1,
    "CC": 0,
    "BCC": 0,
    "HEADERS": 0,
    "ATTACHMENTS": 0,
    "RECIPIENTS": 1,
    "URGENT_PER_HOUR": 1,
    "QUEUE": 1,
}
"""The smallest value each number may have."""

MOST = 3_650 * DAY
"""The largest value of any of them: seconds beyond that lead to dates that no database knows."""
PARTS = {"RESERVE", "SHARE"}
"""Those that are a part of something, hence 1 at most."""

_WHOLE = {"CONNECTIONS", "WEIGHT", "BATCH", "CLAIM_BATCH", "MAX_ATTEMPTS", "UNHEALTHY_THRESHOLD", "HEALTHY_THRESHOLD"}
_API = {f.name.upper() for f in fields(ApiPolicy)}
_WHOLE |= _API
_TOP = {f.name.upper() for f in fields(Settings)} - {"TAKES_ADDED"}
_PROVIDER = {"CONNECTIONS", "WEIGHT", "ALLOWED_SENDERS", "BATCH", "RATE", "RESERVE", "WARM_UP"}
_STREAM = {
    "PROVIDERS", "PRIORITY", "STRATEGY", "FAILOVER", "SHARE", "KICK", "LIFETIME_SECONDS", "UNCERTAIN",
    "UNCERTAIN_WINDOW_SECONDS",
}  # fmt: skip
SWITCHES = {
    "FAILOVER": "with False, mail waits for the provider that the stream prefers.",
    "KICK": "with True, mail is sent at once where no mail_worker is at work.",
}
PRIORITIES = {"URGENT": 0, "HIGH": 10, "NORMAL": 20, "LOW": 30, "BULK": 40}


@dataclass(frozen=True)
class Problem:
    """Something wrong in `MAILENGINE`: what was seen, and the mend."""

    text: str
    hint: str
    serious: bool = True


def get_settings() -> Settings:
    """The settings as they are now. Entries that make no sense are left at their defaults; see `problems()`."""
    return _read(_fingerprint(_raw()))[0]


def problems() -> tuple[Problem, ...]:
    """Everything that is wrong in `MAILENGINE`, in the order it stands there."""
    return _read(_fingerprint(_raw()))[1]


def _raw() -> object:
    return getattr(django_settings, "MAILENGINE", {})


def _fingerprint(raw: object) -> str:
    return json.dumps(raw, default=repr)


@functools.lru_cache(maxsize=8)
def _read(document: str) -> tuple[Settings, tuple[Problem, ...]]:
    found: list[Problem] = []
    raw = json.loads(document)
    if not isinstance(raw, dict):
        found.append(Problem(f"MAILENGINE is {raw!r}.", "It is a dictionary of settings."))
        raw = {}
    found.extend(_unknown(raw, known=_TOP, where="MAILENGINE"))
    providers = _providers(raw.get("PROVIDERS", {}), found)
    streams = _streams(raw.get("STREAMS", {}), providers, found)
    values: dict[str, Any] = {"providers": providers, "streams": streams}
    for name, value in raw.items():
        if name in NUMBERS and name in _TOP and _is_number(name, value, where="MAILENGINE", found=found):
            values[name.lower()] = value
    if _is_strategy(raw.get("STRATEGY", "ordered"), where='MAILENGINE["STRATEGY"]', found=found):
        values["strategy"] = raw.get("STRATEGY", "ordered")
    values["alert_mailer"] = raw.get("ALERT_MAILER")
    if not isinstance(values["alert_mailer"], str | None):
        found.append(Problem(f"ALERT_MAILER is {values['alert_mailer']!r}.", "It is one alias of MAILERS, as text."))
        values["alert_mailer"] = None
    values["api"] = _api(raw.get("API", {}), found)
    for name in ("SHOULD_PROBE", "CLASSIFIER"):
        if raw.get(name) is not None and _is_path(raw[name], where=f"MAILENGINE[{name!r}]", found=found):
            values[name.lower()] = raw[name]
    settings = Settings(**values)
    if settings.trusted_seconds < 0:
        needed = f"at least SEND_DEADLINE_SECONDS + {settings.lease_margin_seconds:g}"
        found.append(
            Problem(
                f"LEASE_SECONDS is {settings.lease_seconds:g}: a send may outlive its lease.",
                f"Make it {needed}, or shorten SEND_DEADLINE_SECONDS ({settings.send_deadline_seconds:g}).",
            )
        )
    elif settings.trusted_seconds < SHORTEST_TRUST_SECONDS:
        left = f"leaves {settings.trusted_seconds:g} s between a claim and the last moment to begin"
        found.append(
            Problem(
                f"LEASE_SECONDS is {settings.lease_seconds:g}, which {left}: mail may go back to the queue unsent.",
                "Make it longer, or shorten SEND_DEADLINE_SECONDS.",
                serious=False,
            )
        )
    return settings, tuple(found)


def _api(raw: object, found: list[Problem]) -> ApiPolicy:
    if not isinstance(raw, dict):
        found.append(Problem(f'MAILENGINE["API"] is {raw!r}.', "It is a dictionary of limits."))
        return ApiPolicy()
    where = 'MAILENGINE["API"]'
    found.extend(_unknown(raw, known=_API, where=where))
    given = {name: value for name, value in raw.items() if name in _API}
    sound = {n.lower(): v for n, v in given.items() if _is_number(n, v, where=where, found=found)}
    return ApiPolicy(**sound)


def _providers(raw: object, found: list[Problem]) -> dict[str, ProviderPolicy]:
    if isinstance(raw, list) and all(isinstance(alias, str) for alias in raw):
        raw = {alias: {} for alias in raw}
    if not isinstance(raw, dict):
        found.append(
            Problem(f'MAILENGINE["PROVIDERS"] is {raw!r}.', "It is a dictionary or a list of MAILERS aliases.")
        )
        return {}
    policies = {}
    for alias, entry in raw.items():
        where = f'MAILENGINE["PROVIDERS"][{alias!r}]'
        policy = ProviderPolicy(alias)
        if not isinstance(entry, dict):
            found.append(Problem(f"{where} is {entry!r}.", "It is a dictionary, empty for the defaults."))
            entry = {}
        found.extend(_unknown(entry, known=_PROVIDER, where=where))
        for name in ("CONNECTIONS", "WEIGHT", "RESERVE", "BATCH"):
            if name in entry and _is_number(name, entry[name], where=where, found=found):
                policy = replace(policy, **{name.lower(): entry[name]})
        rate = _rate(entry.get("RATE"), where=f'{where}["RATE"]', found=found)
        warm_up = _warm_up(entry.get("WARM_UP"), where=f'{where}["WARM_UP"]', found=found)
        policy = replace(policy, rate=rate, warm_up=warm_up)
        if entry.get("ALLOWED_SENDERS") is not None:
            allowed = _senders(entry["ALLOWED_SENDERS"], where=f'{where}["ALLOWED_SENDERS"]', found=found)
            policy = replace(policy, allowed_senders=allowed)
        policies[alias] = policy
    return policies


def _rate(raw: object, *, where: str, found: list[Problem]) -> tuple[Limit, ...]:
    if raw is None:
        return ()
    try:
        return limits_of(raw if isinstance(raw, str) else repr(raw))
    except ValueError as error:
        found.append(Problem(f"{where}: {error}", "Leave it out for no limit."))
        return ()


def _warm_up(raw: object, *, where: str, found: list[Problem]) -> tuple[int, ...]:
    if raw is None:
        return ()
    if isinstance(raw, list) and raw and all(type(most) is int and 1 <= most <= MOST for most in raw):
        return tuple(raw)
    hint = "It is a list of whole numbers, the most mail on the first day, on the second, …: [50, 100, 500, 1000]."
    found.append(Problem(f"{where} is {raw!r}.", hint))
    return ()


def _senders(raw: object, *, where: str, found: list[Problem]) -> tuple[str, ...] | None:
    """Addresses and domains as `may_send_as()` knows them; None, so that no mail is held up, for nonsense."""
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, list) or not items:
        found.append(Problem(f"{where} is {raw!r}.", "It is a list of addresses and domains, as '@example.org'."))
        return None
    senders = []
    for item in items:
        text = str(item)
        try:
            address = parse_address(f"x{text}" if text.startswith("@") else text)
        except InvalidAddress:
            hint = "Give one like 'news@example.org' or '@example.org'."
            found.append(Problem(f"{where} has {item!r}, which is neither an address nor a domain.", hint))
            continue
        senders.append(f"@{address.key.rpartition('@')[2]}" if text.startswith("@") else address.key)
    return tuple(senders) or None


def _streams(raw: object, providers: Mapping[str, ProviderPolicy], found: list[Problem]) -> dict[str, StreamPolicy]:
    streams = dict(STREAMS)
    if not isinstance(raw, dict):
        found.append(Problem(f'MAILENGINE["STREAMS"] is {raw!r}.', "It is a dictionary of streams by name."))
        return streams
    for name, entry in raw.items():
        where = f'MAILENGINE["STREAMS"][{name!r}]'
        if not isinstance(entry, dict):
            found.append(Problem(f"{where} is {entry!r}.", "It is a dictionary, empty for the defaults."))
            entry = {}
        found.extend(_unknown(entry, known=_STREAM, where=where, later=LATER))
        base = streams.get(name) or StreamPolicy(name, priority=PRIORITIES["NORMAL"])
        streams[name] = replace(base, **dict(_stream_values(entry, providers, where=where, found=found)))
    shares = sum(policy.share for policy in streams.values())
    if shares > 1:
        hint = "Together they are 1 at most; a stream without one goes by its priority alone."
        found.append(Problem(f'MAILENGINE["STREAMS"]: the values of SHARE add up to {shares:g}.', hint))
    return streams


def _stream_values(
    entry: Mapping[str, Any], providers: Mapping[str, ProviderPolicy], *, where: str, found: list[Problem]
) -> Iterator[tuple[str, Any]]:
    for name, value in entry.items():
        if name in NUMBERS and _is_number(name, value, where=where, found=found):
            yield name.lower(), value
        elif name == "STRATEGY" and _is_strategy(value, where=f"{where}[{name!r}]", found=found):
            yield "strategy", value
        elif name in SWITCHES:
            if isinstance(value, bool):
                yield name.lower(), value
            else:
                hint = f"It is True or False: {SWITCHES[name]}"
                found.append(Problem(f"{where}[{name!r}] is {value!r}.", hint))
        elif name == "UNCERTAIN":
            if value in UNCERTAIN_POLICIES:
                yield "uncertain", value
            else:
                found.append(Problem(f'{where}["UNCERTAIN"] is {value!r}.', 'It is "resend" or "hold".'))
        elif name == "PRIORITY":
            if isinstance(value, str) and value.upper() in PRIORITIES:
                value = PRIORITIES[value.upper()]
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100:
                yield "priority", value
            else:
                found.append(
                    Problem(f'{where}["PRIORITY"] is {value!r}.', f"It is one of {', '.join(PRIORITIES)}, or 0 to 100.")
                )
        elif name == "PROVIDERS":
            aliases = value if isinstance(value, list) else [value]
            if not aliases:
                found.append(Problem(f'{where}["PROVIDERS"] names no provider.', "Leave it out to use all of them."))
                continue
            for alias in aliases:
                if alias not in list(providers):
                    hint = did_you_mean(alias, providers).strip() or 'Add it to MAILENGINE["PROVIDERS"].'
                    found.append(Problem(f'{where}["PROVIDERS"] names {alias!r}, which is no provider.', hint))
            yield "providers", tuple(map(str, aliases))


def _unknown(
    entry: Mapping[str, object],
    *,
    known: set[str],
    where: str,
    later: Collection[str] = (),
) -> Iterator[Problem]:
    for name in entry:
        if name in later:
            yield Problem(
                f"{where} has {name!r}, which has no effect in this version.", "Leave it out for now.", serious=False
            )
        elif name not in known:
            yield Problem(f"{where} has no setting {name!r}.", did_you_mean(name, known).strip())


def _is_number(name: str, value: object, *, where: str, found: list[Problem]) -> bool:
    least = NUMBERS[name]
    if value is None and name == "UNCERTAIN_WINDOW_SECONDS":
        return True
    most = 1 if name in PARTS else MOST
    kinds = (int,) if name in _WHOLE else (int, float)
    if isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most:
        return True
    kind = "a whole number" if name in _WHOLE else "a number"
    is_too_much = isinstance(value, (int, float)) and most < value < float("inf")
    limits = f"{least} or more, and at most {most:,}" if is_too_much else f"{least} or more"
    found.append(Problem(f"{where}[{name!r}] is {value!r}.", f"It is {kind}, {limits}."))
    return False


def _is_path(value: object, *, where: str, found: list[Problem]) -> bool:
    if isinstance(value, str) and "." in value:
        return True
    found.append(Problem(f"{where} is {value!r}.", "It is the dotted path of a function, as 'paper.mail.judge'."))
    return False


def _is_strategy(value: object, *, where: str, found: list[Problem]) -> bool:
    if value in STRATEGIES:
        return True
    found.append(Problem(f"{where} is {value!r}.", did_you_mean(value, STRATEGIES).strip()))
    return False
