"""The loop: claim, compose, begin, send, settle.

One thread, the one that called, talks to the database; the senders talk to providers, outside any transaction. The
End of one handover and the Begin of the next share a commit, as do those of all connections that happen to be ready.
So a crash leaves in doubt what was in flight, one message for each connection, and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Event, Thread
from uuid import UUID

from django.db import router, transaction

from ..conf import get_settings
from ..consent.policy import refusals_for
from ..consent.suppress import suppress
from ..errors import InvalidMail
from ..models import Attempt, Lease, Message, MessageJob, Suppression, Worker
from ..models.messages import SUSPECT_CLAIMS, MessageQuerySet, Status, Verdict
from ..outcomes import Kind, Outcome
from .alerts import send_alert
from .compose import ComposedEmail, NoSender, Words, compose, load_words
from .health import Health, Result
from .objection import leave_out, objection_to, pending_addresses, suppressed_addresses
from .partial import note_outcomes, split_refused
from .report import Report
from .senders import Team
from .verdict import back, final, late, verdict_for, window_seconds

logger = logging.getLogger("mailengine.dispatch")

WORDS_KEPT = 16
"""Contents that a run keeps loaded, with their files."""
HEARTBEAT_SECONDS = 10.0
WAIT_SECONDS = 0.2
"""How long the loop waits for a handover to end before it looks at the clock and the stop event again."""


@dataclass(frozen=True)
class Claim:
    """Messages that were claimed together."""

    messages: Sequence[Message]
    lease: Lease
    is_suspect: bool = False
    """One alone, which may have killed its workers."""


@dataclass
class Item:
    """A claimed message on its way through the loop."""

    message: Message
    lease: Lease
    email: ComposedEmail | None = None
    verdict: Verdict | None = None
    """Set where it could not be composed."""
    tried: set[str] = field(default_factory=set)
    """Providers that it was at in this claim."""
    provider: str = ""
    number: int = 0
    is_probe: bool = False
    is_suspect: bool = False


def dispatch_slice(*, max_time: float = 50, limit: int | None = None, stop: Event | None = None) -> Report:
    """Send what is queued and due, for at most `max_time` seconds and `limit` messages: what `send_mail` runs.

    For schedulers: overlapping calls, in as many processes and hosts as you like, share the work. Set `stop` to end
    early: what is in flight ends and is recorded, the rest is given back.
    """
    return Dispatcher("send_mail", max_time=max_time, limit=limit, stop=stop).run()


class Dispatcher:
    """One run over the queue.

    `deferred=True` sends what is deferred and due and touches nothing else; otherwise what is queued, and the
    uncertain mail whose window is over. `streams` restricts it to some streams.
    """

    def __init__(
        self,
        command: str,
        *,
        deferred: bool = False,
        streams: Collection[str] | None = None,
        max_time: float | None = 50,
        limit: int | None = None,
        stop: Event | None = None,
        on_progress: Callable[[Report], None] | None = None,
    ) -> None:
        self.settings = get_settings()
        self.using = router.db_for_write(Message)
        self.deferred = deferred
        self._statuses = [Status.DEFERRED] if deferred else [Status.QUEUED, Status.UNCERTAIN]
        self.streams = None if streams is None else set(streams)
        self.limit = limit
        self.stop = stop or Event()
        self.on_progress = on_progress
        self.ends_at = float("inf") if max_time is None else time.monotonic() + max_time
        self.report = Report(command)
        self.health = Health(self.settings)
        self.team: Team[Item] = Team(self._team_size())
        self.stock: deque[Item] = deque()
        self.suspects: list[UUID] = []
        self.in_flight: dict[UUID, Item] = {}
        self.words: dict[int, Words] = {}
        self.worker: Worker | None = None
        self.given_back: Counter[UUID] = Counter()
        self.claimed_count = 0
        self.is_dry = False
        self.is_direct = False
        self.saw_mail = False
        self.heartbeat_at = 0.0
        self.alarms: list[Thread] = []
        self.started_at = time.monotonic()

    # The run

    def run(self) -> Report:
        """Send until there is nothing left to do, or it is time to stop."""
        try:
            self._keep_house()
            self._loop()
            self.report.is_blocked = self._is_blocked()
        finally:
            self._finish()
        return self.report

    def run_direct(self, message: Message, lease: Lease) -> Report:
        """Send this one message, held under `lease`, and nothing else; it ends in a final state or is kept."""
        self.is_direct = self.is_dry = True
        self.worker = lease.worker
        try:
            self.health.refresh()
            self._stock_up(Claim([message], lease))
            self._loop()
        finally:
            self._finish()
        return self.report

    def _loop(self) -> None:
        while not self._is_done():
            self._step()

    def _step(self) -> None:
        """One turn: record what has ended, begin what can go, claim what comes next; all in one commit."""
        ended = self.team.collect(wait_seconds=self._patience())
        with transaction.atomic(using=self.using):
            self.health.refresh()
            self._settle(ended)
            claim = self._claim_more_urgent()
            begun = [] if claim else self._begin()
            claim = claim or self._claim()
            self._heartbeat()
        # It is durable now; what follows asks the database for words, and for nothing else.
        for item in begun:
            self.team.send(item, _composed(item), item.provider)
        self._raise_alarms()
        if claim:
            self._stock_up(claim)
        if self.on_progress is not None:
            self.on_progress(self.report)

    def _is_done(self) -> bool:
        if self.in_flight:
            return False
        return (self.is_dry and not self.stock and not self.suspects) or self._must_stop()

    def _must_stop(self) -> bool:
        if self.stop.is_set():
            self.report.stopped = "signal"
        elif time.monotonic() >= self.ends_at:
            self.report.stopped = "max_time"
        else:
            return False
        return True

    def _patience(self) -> float:
        """How long to wait for a handover to end: not at all while there is something better to do."""
        if not self.in_flight:
            return 0
        self._abandon_lost()
        can_begin = self.stock and self.team.idle_count and not self._must_stop()
        return 0 if can_begin and any(self._has_room(item, Counter()) for item in self.stock) else WAIT_SECONDS

    def _abandon_lost(self) -> None:
        """Stop waiting for handovers whose lease is over; they are rescued as uncertain, and may still end late."""
        grace = self.settings.lease_seconds - self.settings.trusted_seconds
        for item in list(self.in_flight.values()):
            if time.monotonic() > item.lease.trusted_until + grace:
                logger.error("provider %s has not answered within the lease", item.provider)
                del self.in_flight[item.message.pk]

    def _finish(self) -> None:
        """Give back what was not begun, close jobs, say goodbye."""
        leftovers = [item.message.pk for item in self.stock]
        with transaction.atomic(using=self.using):
            if leftovers:
                Message.objects.release(leftovers, *{item.lease for item in self.stock})
            if self.worker is not None:
                self.report.jobs_done = MessageJob.objects.finish()
                self.worker.heartbeat(handled_count=sum(self.report.outcomes.values()), stopping=True)
        self.stock.clear()
        self.team.close()
        for thread in self.alarms:
            thread.join(timeout=self.settings.send_deadline_seconds)
        if self.limit is not None and self.claimed_count >= self.limit and self.report.stopped == "done":
            self.report.stopped = "limit"
        self.report.seconds = time.monotonic() - self.started_at

    def _keep_house(self) -> None:
        """Before the first claim: rescue what lost workers left, close what has expired, look for work."""
        if not self.deferred:
            with transaction.atomic(using=self.using):
                if Message.objects.overdue_leases().exists():
                    self.report.rescued = self._rescue()
                if Message.objects.expired().exists():
                    self.report.expired = Message.objects.expire()
        self.saw_mail = self._mine().due().exists()
        self.is_dry = not self.saw_mail

    def _rescue(self) -> int:
        return Message.objects.rescue(window=lambda message: window_seconds(message, settings=self.settings))

    def _is_blocked(self) -> bool:
        """Whether mail is due that no provider can take now."""
        if self.report.stopped != "done" or not self.saw_mail:
            return False
        blocked = set(self.settings.streams) - self.health.usable_streams()
        return bool(blocked) and self._mine().due().filter(stream__in=blocked).exists()

    # Claim

    def _mine(self) -> MessageQuerySet:
        """The messages that are this run's business."""
        mine = Message.objects.filter(status__in=self._statuses)
        return mine if self.streams is None else mine.filter(stream__in=self.streams)

    def _claim_more_urgent(self) -> Claim | None:
        """Take mail that goes before what is in stock: it is composed before anything else begins."""
        if not self.stock or not self.team.idle_count or self._may_not_claim():
            return None
        head = min(item.message.priority for item in self.stock)
        limit = min(self._batch(), self.team.idle_count)
        if head == 0 or limit <= 0:
            return None
        urgent = self._claimable().filter(priority__lt=head)
        return self._take(urgent, [Status.DEFERRED if self.deferred else Status.QUEUED], limit=limit)

    def _claim(self) -> Claim | None:
        """Take the next batch when the stock runs low."""
        if self._may_not_claim() or len(self.stock) >= self.team.size:
            return None
        if self.suspects and not self.in_flight and not self.stock:
            # What may have killed its workers is claimed when nothing else of this process is under way.
            suspect = Message.objects.filter(pk=self.suspects.pop())
            return self._take(suspect, self._statuses, limit=1, is_suspect=True)
        if self.is_dry:
            return None
        limit = self._batch()
        if limit <= 0:
            # What is in flight may close a circuit, or come back; then there is more to do.
            self.is_dry = not self.in_flight and not self.stock
            return None
        claim = self._take(self._claimable(), self._statuses, limit=limit)
        self.is_dry = claim is None or len(claim.messages) < limit
        return claim

    def _may_not_claim(self) -> bool:
        return self.is_direct or self._must_stop() or any(item.is_suspect for item in self._under_way())

    def _take(
        self, candidates: MessageQuerySet, statuses: Sequence[Status], *, limit: int, is_suspect: bool = False
    ) -> Claim | None:
        lease = self._lease()
        messages: list[Message] = []
        for status in statuses:
            if len(messages) < limit:
                left = limit - len(messages)
                messages += candidates.claim(lease, status=status, seconds=self.settings.lease_seconds, limit=left)
        self.claimed_count += len(messages)
        return Claim(messages, lease, is_suspect) if messages else None

    def _under_way(self) -> Iterator[Item]:
        yield from self.stock
        yield from self.in_flight.values()

    def _claimable(self) -> MessageQuerySet:
        mine = Message.objects.all() if self.streams is None else Message.objects.filter(stream__in=self.streams)
        usable = self.health.usable_streams()
        blocked = set(self.settings.streams) - usable
        if blocked:
            # Mail of a stream that the settings no longer have goes as transactional mail does.
            others = mine.exclude(stream__in=blocked)
            mine = others if "transactional" in usable else mine.filter(stream__in=usable)
        return mine.exclude(pk__in=self.suspects) if self.suspects else mine

    def _batch(self) -> int:
        """How many to claim at most."""
        if not self.health.usable_streams():
            return 0
        batch = 1 if self.health.only_probes() else self.settings.batch
        left = batch if self.limit is None else self.limit - self.claimed_count
        return min(batch, left)

    def _lease(self) -> Lease:
        if self.worker is None:
            self.worker = Worker.objects.register(self.report.command)
        return Lease(self.worker, trusted_until=time.monotonic() + self.settings.trusted_seconds)

    # Compose

    def _stock_up(self, claim: Claim) -> None:
        """Compose what was claimed; what can't be composed was never in doubt."""
        messages = self._set_suspects_aside(claim)
        items = [self._compose(message, claim.lease) for message in messages]
        for item in items:
            item.is_suspect = claim.is_suspect
        if self.stock and items and items[0].message.priority < self.stock[0].message.priority:
            self.stock.extendleft(reversed(items))
        else:
            self.stock.extend(items)

    def _set_suspects_aside(self, claim: Claim) -> list[Message]:
        """Give back, to be claimed alone later, what may have killed its workers; the others are returned."""
        if claim.is_suspect or self.is_direct:
            return list(claim.messages)
        suspects = [message.pk for message in claim.messages if message.claim_count > SUSPECT_CLAIMS]
        if suspects:
            Message.objects.release(suspects, claim.lease)
            self.claimed_count -= len(suspects)
            self.suspects += suspects
        return [message for message in claim.messages if message.pk not in suspects]

    def _compose(self, message: Message, lease: Lease) -> Item:
        item = Item(message, lease)
        try:
            item.email = compose(message, self._words(message.content_id))
        except NoSender as error:
            logger.error("%s", error)
            item.verdict = self._later(message, f"misconfigured: {error}")
        except FileNotFoundError as error:
            item.verdict = Verdict(Status.DEAD, f"invalid: an attachment's file is gone: {error}")
        except OSError as error:
            item.verdict = self._later(message, f"the storage of attachments does not answer: {error}")
        except (InvalidMail, ValueError, TypeError, LookupError) as error:
            item.verdict = Verdict(Status.DEAD, f"invalid: it can't be composed: {error}")
        return item

    def _later(self, message: Message, reason: str) -> Verdict:
        """Not now, by no fault of the message or of a provider: again in one probe interval."""
        now = self.health.now
        until = now + timedelta(seconds=max(self.settings.probe_interval_seconds, 1))
        return back(message, reason, now=now, settings=self.settings, until=until)

    def _words(self, content_id: int) -> Words:
        words = self.words.get(content_id)
        if words is None:
            words = load_words(content_id)
            while len(self.words) >= WORDS_KEPT:
                del self.words[next(iter(self.words))]
            self.words[content_id] = words
        return words

    # Begin

    def _begin(self) -> list[Item]:
        """Enter in the ledger what goes out now; look again at everything that may have changed since the claim."""
        chosen = self._take_from_stock()
        if not chosen:
            return []
        rows = Message.objects.held([item.message.pk for item in chosen])
        ours = []
        for item in chosen:
            row = rows.get(item.message.pk)
            if row is None or row.lease != item.lease.id:
                continue  # rescued, cancelled or settled late by somebody else: it isn't ours any more
            item.message = row
            ours.append(item)
        records = Attempt.objects.records(rows)
        jobs = self._job_statuses(ours)
        refusals = self._refusals(ours)
        begun = []
        for item in ours:
            record = records.get(item.message.pk)
            if record is not None and record.accepted:
                verdict: Verdict | None = Verdict(Status.SENT, "the ledger says that it was sent")
            else:
                verdict = item.verdict or self._objection(item, jobs, refusals.get(item.message.stream, {}))
            if verdict is None:
                verdict = self._find_provider(item)
            if verdict is not None:
                self._conclude(item, verdict)
            elif item.provider:
                item.number = record.last_number + 1 if record else 1
                item.message.provider = item.provider
                begun.append(item)
        if begun and self.worker is not None:
            numbers = {item.message.pk: (item.number, item.provider) for item in begun}
            Attempt.objects.begin(numbers, worker=self.worker)
        self.in_flight.update((item.message.pk, item) for item in begun)
        return begun

    def _take_from_stock(self) -> list[Item]:
        """As many as there are idle senders; in a run that must stop, none."""
        if self._must_stop():
            return []
        taken: list[Item] = []
        kept: list[Item] = []
        planned: Counter[str] = Counter()
        while self.stock and len(taken) < self.team.idle_count:
            item = self.stock.popleft()
            if not item.lease.is_trusted:
                Message.objects.release([item.message.pk], item.lease)
                self.claimed_count -= 1
                self.is_dry = False
            elif self._has_room(item, planned):
                taken.append(item)
            else:
                kept.append(item)
        self.stock.extendleft(reversed(kept))
        return taken

    def _objection(self, item: Item, jobs: Mapping[int, str], refusals: Mapping[str, str]) -> Verdict | None:
        """Why this item must not go after all; else its suppressed addresses are left out."""
        message = item.message
        job_status = jobs.get(message.job_id) if message.job_id else None
        verdict = objection_to(message, job_status=job_status, refusals=refusals, settings=self.settings)
        if verdict is not None:
            return verdict
        if stopped := suppressed_addresses(message, refusals):
            leave_out(message, stopped)
            recomposed = self._compose(message, item.lease)
            item.email = recomposed.email
            return recomposed.verdict
        return None

    def _find_provider(self, item: Item) -> Verdict | None:
        """Set the item's provider, or say what becomes of it when none can take it now."""
        item.provider = ""
        choice = self.health.choose(item.message, tried=item.tried)
        while choice is not None and choice.is_probe and not self.health.start_probe(choice.alias):
            self.health.refresh(at_once=True)
            choice = self.health.choose(item.message, tried=item.tried)
        if choice is not None:
            item.provider, item.is_probe = choice.alias, choice.is_probe
            return None
        return self._back_to_the_queue(item, "no provider can be used now")

    def _back_to_the_queue(self, item: Item, reason: str, *, until: datetime | None = None) -> Verdict:
        """It stays due, so that it goes as soon as a provider can take it; but not over and over in one run."""
        self.given_back[item.message.pk] += 1
        if self.given_back[item.message.pk] > self.settings.unhealthy_threshold and until is None:
            until = item.message.now + timedelta(seconds=max(self.settings.probe_interval_seconds, 1))
        if until is None and not self.is_direct:
            self.is_dry = False
        return back(item.message, reason, now=item.message.now, settings=self.settings, until=until)

    def _has_room(self, item: Item, planned: Counter[str]) -> bool:
        """Whether the provider that it would go to may have one more connection here; then it is `planned`."""
        choice = None if item.verdict else self.health.choose(item.message, tried=item.tried)
        if choice is None:
            return True
        most = self.settings.provider(choice.alias).connections
        if most is not None and self.team.in_flight[choice.alias] + planned[choice.alias] >= most:
            return False
        planned[choice.alias] += 1
        return True

    # Settle

    def _settle(self, ended: Sequence[tuple[Item, Outcome]]) -> None:
        """Enter in the ledger and in the messages what came of these handovers; some begin elsewhere at once."""
        if not ended:
            return
        rows = Message.objects.held([item.message.pk for item, _outcome in ended])
        self.health.note(Result(item.provider, outcome, item.message.stream, item.is_probe) for item, outcome in ended)
        for item, outcome in ended:
            self.in_flight.pop(item.message.pk, None)
            Attempt.objects.end(item.message.pk, item.number, outcome)
            self._suppress_bad_addresses(item.message, outcome)
            row = rows.get(item.message.pk)
            is_ours = row is not None and row.lease == item.lease.id
            if is_ours and row is not None:
                other_recipients = item.message.other_recipients
                item.message = row
                row.provider, row.other_recipients = item.provider, other_recipients
            item.tried.add(item.provider)
            verdict = self._verdict(item, outcome)
            note_outcomes(item.message, outcome)
            if is_ours and verdict is None:
                self.stock.appendleft(item)
                continue
            if is_ours and verdict is not None:
                settled = self._conclude(item, verdict, outcome=outcome)
            else:
                verdict = late(verdict, now=self.health.now)
                settled = Message.objects.settle_late(item.message, verdict, number=item.number, outcome=outcome)
            if settled and outcome.refusals:
                split_refused(item.message, outcome, now=self.health.now, settings=self.settings)

    def _verdict(self, item: Item, outcome: Outcome) -> Verdict | None:
        message = item.message
        circuit = self.health.circuit(item.provider)
        verdict = verdict_for(
            message,
            outcome,
            provider=item.provider,
            now=self.health.now,
            settings=self.settings,
            another=self.health.another(message, tried=item.tried),
            throttled_until=circuit.throttled_until,
        )
        if verdict is not None and verdict.keeps_due_time:
            message.now = self.health.now
            return self._back_to_the_queue(item, verdict.reason)
        return verdict

    def _conclude(self, item: Item, verdict: Verdict, *, outcome: Outcome | None = None) -> bool:
        if self.is_direct:
            verdict = final(verdict)
        if not Message.objects.settle(item.message, verdict, lease=item.lease, outcome=outcome):
            return False
        if verdict.status == item.message.claimed_from and not verdict.spends_attempt:
            self.claimed_count -= 1  # it went back: nothing became of it yet
            return True
        self.report.outcomes[verdict.status] += 1
        if outcome is not None and verdict.status == Status.SENT:
            self.report.sent_by[item.provider] += 1
        extra = {"message": str(item.message.pk), "status": str(verdict.status), "provider": item.provider}
        logger.info("message %s: %s", item.message.pk, verdict.status, extra=extra)
        return True

    def _suppress_bad_addresses(self, message: Message, outcome: Outcome) -> None:
        refused = dict(outcome.refusals)
        if outcome.kind is Kind.REFUSED and len(message.recipients) == 1:
            refused[message.recipient] = outcome
        for address, refusal in refused.items():
            if refusal.address_is_bad:
                suppress(address.casefold(), reason=Suppression.Reason.REFUSED, detail=str(refusal))

    # What Begin looks up, one query each for all that begin together

    def _job_statuses(self, items: Iterable[Item]) -> dict[int, str]:
        ids = {item.message.job_id for item in items if item.message.job_id}
        return dict(MessageJob.objects.filter(pk__in=ids).values_list("pk", "status")) if ids else {}

    def _refusals(self, items: Iterable[Item]) -> dict[str, Mapping[str, str]]:
        """The suppressed addresses, by stream."""
        by_stream: dict[str, set[str]] = {}
        for item in items:
            by_stream.setdefault(item.message.stream, set()).update(pending_addresses(item.message))
        return {stream: refusals_for(addresses, stream=stream) for stream, addresses in by_stream.items()}

    # Around it

    def _team_size(self) -> int:
        """No more threads than all providers together may have connections."""
        allowed = [policy.connections or self.settings.connections for policy in self.settings.providers.values()]
        return max(1, min(self.settings.connections, sum(allowed)))

    def _heartbeat(self) -> None:
        if self.worker is not None and time.monotonic() >= self.heartbeat_at:
            self.heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
            self.worker.heartbeat(handled_count=sum(self.report.outcomes.values()))

    def _raise_alarms(self) -> None:
        self.alarms += [send_alert(alert) for alert in self.health.alerts]
        self.health.alerts.clear()


def _composed(item: Item) -> ComposedEmail:
    if item.email is None:
        raise ValueError(f"message {item.message.pk} was begun without having been composed")
    return item.email
