"""The loop: claim, compose, begin, send, settle.

One thread, the one that called, talks to the database; the senders talk to providers, outside any transaction. The
End of one handover and the Begin of the next share a commit, as do those of all connections that happen to be ready.
So a crash leaves in doubt what was in flight, one message for each connection, and nothing else.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from uuid import UUID

from django.db import Error as DatabaseFault
from django.db import connections, router, transaction

from ..conf import Settings, get_settings
from ..models import Lease, Message, MessageJob, Worker
from ..models.bulk import Asked
from ..models.messages import SUSPECT_CLAIMS, MessageQuerySet, Status, Verdict
from ..outcomes import Outcome
from .alerts import send_alert
from .compose import ComposedEmail
from .composer import Composer
from .health import Health
from .items import Claim, Item
from .ledger import Ledger
from .report import Report
from .senders import Team
from .verdict import window_seconds

logger = logging.getLogger("mailengine.dispatch")

HEARTBEAT_SECONDS = 10.0
WAIT_SECONDS = 0.2
"""How long the loop waits for a handover to end before it looks at the clock and the stop event again."""


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
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or get_settings()
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
        self.urgent_mail: dict[tuple[object, ...], Asked] = {}
        self.in_flight: dict[UUID, Item] = {}
        self.ended: list[tuple[Item, Outcome]] = []
        """What came of handovers, until it is durable."""
        self.composer = Composer(self.settings, self.health)
        self.ledger = Ledger(self.settings, self.health, self.composer, self.report)
        self.worker: Worker | None = None
        self.claimed_count = 0
        self.returned_count = 0
        self.is_dry = False
        self.saw_mail = False
        self.heartbeat_at = 0.0
        self.alarms: list[Thread] = []
        self.started_at = time.monotonic()

    # The run

    def run(self) -> Report:
        """Send until there is nothing left to do, or it is time to stop."""
        with self._orderly_end():
            self._keep_house()
            self._loop()
            self.report.is_blocked = self._is_blocked()
        return self.report

    def run_direct(self, message: Message, lease: Lease) -> Report:
        """Send this one message, held under `lease`, and nothing else; it ends in a final state or is kept."""
        self.ledger.is_direct = self.is_dry = True
        self.worker = lease.worker
        with self._orderly_end():
            self.health.refresh()
            self._stock_up(Claim([message], lease))
            self._loop()
        return self.report

    def _loop(self) -> None:
        while not self._is_done():
            self._step()

    def _step(self) -> None:
        """One turn: record what has ended, begin what can go, claim what comes next; all in one commit."""
        ended = self.ended
        ended += self.team.collect(wait_seconds=self._patience())
        with transaction.atomic(using=self.using):
            self.health.refresh()
            concerned = [item.message.pk for item in (*self.stock, *(item for item, _outcome in ended))]
            rows = Message.objects.held(concerned) if concerned else {}
            self.stock.extendleft(reversed(self.ledger.settle(ended, rows)))
            for item, _outcome in ended:
                self.in_flight.pop(item.message.pk, None)
            claim = self._claim_more_urgent()
            begun = [] if claim else self._begin(rows)
            self._note_returns()
            claim = claim or self._claim()
            self._heartbeat()
        ended.clear()
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
        is_through = self.is_dry and not self.stock and (not self.suspects or self._batch() <= 0)
        return is_through or self._must_stop()

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
            # Senders that never came back may hold all connections; then there is nothing to do but look again.
            return 0 if self.team.idle_count else WAIT_SECONDS
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

    @contextmanager
    def _orderly_end(self) -> Iterator[None]:
        """However the run ends: record what is known, give back what was not begun, close jobs, say goodbye."""
        try:
            yield
        except BaseException:
            # The database may be what failed; whatever can still be saved is saved, and the error goes on.
            with suppress(DatabaseFault):
                self._save_outcomes()
            with suppress(DatabaseFault):
                self._give_back()
            raise
        else:
            self._give_back()
        finally:
            self._close()

    def _save_outcomes(self) -> None:
        """After an error: let what is in flight end, and record it, lest mail that has arrived be sent again."""
        connection = connections[self.using]
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
        ends_at = time.monotonic() + self.settings.send_deadline_seconds
        while self.team.busy_count and time.monotonic() < ends_at:
            self.ended += self.team.collect(wait_seconds=WAIT_SECONDS)
        with transaction.atomic(using=self.using):
            self.health.refresh(at_once=True)
            self.ledger.settle(self.ended, Message.objects.held([item.message.pk for item, _outcome in self.ended]))

    def _give_back(self) -> None:
        if self.worker is None:
            return
        with transaction.atomic(using=self.using):
            Message.objects.release_all(self.worker)
            self.report.jobs_done = MessageJob.objects.finish()
            self.worker.heartbeat(handled_count=sum(self.report.outcomes.values()), stopping=True)

    def _close(self) -> None:
        self.team.close()
        for thread in self.alarms:
            thread.join(timeout=self.settings.send_deadline_seconds)
        if self.limit is not None and self._handled_count >= self.limit and self.report.stopped == "done":
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
        status = self._statuses[0]
        urgent = self._claimable().filter(priority__lt=head)
        question = (head, *sorted(self.health.usable_streams()))
        if question not in self.urgent_mail:
            self.urgent_mail[question] = Asked(urgent.filter(status=status).due())
        return self._take(urgent, [status], limit=limit) if self.urgent_mail[question].is_any() else None

    def _claim(self) -> Claim | None:
        """Take the next batch when the stock runs low."""
        if self._may_not_claim() or len(self.stock) >= self.team.size:
            return None
        if self.suspects and not self.in_flight and not self.stock and self._batch() > 0:
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
        return self.ledger.is_direct or self._must_stop() or any(item.is_suspect for item in self._under_way())

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
        left = batch if self.limit is None else self.limit - self._handled_count
        return min(batch, left)

    def _register(self) -> Worker:
        if self.worker is None:
            self.worker = Worker.objects.register(self.report.command)
        return self.worker

    @property
    def _handled_count(self) -> int:
        """Messages claimed and not given back."""
        return self.claimed_count - self.returned_count

    def _note_returns(self) -> None:
        """What went back to the queue may be due: there is something to claim again."""
        returned_count = self.ledger.given_back.total()
        if returned_count > self.returned_count:
            self.returned_count = returned_count
            self.is_dry = self.ledger.is_direct

    def _lease(self) -> Lease:
        return Lease(self._register(), trusted_until=time.monotonic() + self.settings.trusted_seconds)

    # Compose

    def _stock_up(self, claim: Claim) -> None:
        """Compose what was claimed; what can't be composed was never in doubt."""
        messages = self._set_suspects_aside(claim)
        items = [self.composer.item(message, claim.lease) for message in messages]
        for item in items:
            item.is_suspect = claim.is_suspect
        if self.stock and items and items[0].message.priority < self.stock[0].message.priority:
            self.stock.extendleft(reversed(items))
        else:
            self.stock.extend(items)

    def _set_suspects_aside(self, claim: Claim) -> list[Message]:
        """Give back, to be claimed alone later, what may have killed its workers; the others are returned."""
        if claim.is_suspect or self.ledger.is_direct:
            return list(claim.messages)
        suspects = [message.pk for message in claim.messages if message.claim_count > SUSPECT_CLAIMS]
        if suspects:
            Message.objects.release(suspects, claim.lease)
            self.claimed_count -= len(suspects)
            self.suspects += suspects
        return [message for message in claim.messages if message.pk not in suspects]

    # Begin

    def _begin(self, rows: Mapping[UUID, Message]) -> list[Item]:
        chosen = self._take_from_stock()
        begun = self.ledger.begin(chosen, rows, worker=self._register()) if chosen else []
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
                self._let_go(item)
            elif self._has_room(item, planned):
                taken.append(item)
            else:
                kept.append(item)
        self.stock.extendleft(reversed(kept))
        return taken

    def _let_go(self, item: Item) -> None:
        """Give back a message whose lease could end before its handover does."""
        if self.ledger.is_direct:
            self.ledger.conclude(item, Verdict(Status.DEAD, "given up: no provider took it while its caller waited"))
            return
        Message.objects.release([item.message.pk], item.lease)
        self.claimed_count -= 1
        self.is_dry = False

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
