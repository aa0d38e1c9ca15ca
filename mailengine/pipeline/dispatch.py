"""The loop: claim, compose, begin, send, settle.

One thread, the one that called, talks to the database; the senders talk to providers, outside any transaction. The
End of one handover and the Begin of the next share a commit, as do those of all connections that happen to be ready.
So a crash leaves in doubt what was in flight, one message for each connection, and nothing else.

When the database fails in passing, a run keeps what it knows, begins nothing, and goes on once the database answers.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from threading import Event, Thread
from typing import Protocol
from uuid import UUID

from django.db import Error as DatabaseFault
from django.db import router, transaction

from ..backends.wire import Mail
from ..conf import Settings, get_settings
from ..errors import DatabaseLost
from ..models import Lease, Message, MessageJob, Worker
from ..models.messages import Hold, Status, Verdict
from ..outcomes import Kind, Outcome
from ..providers.batch import CallRefused
from ..rate import LONGEST_MOMENT_SECONDS
from .alerts import send_alert
from .claims import LOOK_AGAIN_SECONDS, Claims
from .composer import Composer
from .health import Health
from .items import Call, Claim, Item
from .ledger import Ledger
from .outage import may_try_again, one_line_of, waits
from .report import Report
from .senders import Team
from .stock import Stock
from .verdict import window_seconds

logger = logging.getLogger("mailengine.dispatch")

HEARTBEAT_SECONDS = 10.0
WAIT_SECONDS = 0.2
"""How long the loop waits for a handover to end before it looks at the clock and the stop event again."""
SHORTEST_REST_SECONDS = 0.05
"""Which a worker that waits for news waits at least."""
LIMIT_SECONDS = 0.05
"""Within how long after a provider's limit leaves something again the loop looks, where it waits for that."""
BEGUN_TOO_LATE = Outcome(
    Kind.UNAVAILABLE, code="too late", detail="its lease ran out before its begin was durable", is_local=True
)
NEVER_SENT = Outcome(
    Kind.UNAVAILABLE,
    code="commit unknown",
    detail="the database failed as it began; nothing was handed over",
    is_local=True,
)
LAST_TRIES_SECONDS = 2.0
"""For how long a run that is over still tries to reach the database, when nothing is lost without it."""
TURNS = 2**31
"""The number of a turn fits into its column, in a run of months too: it begins again."""


@dataclass
class Turn:
    """What one commit of the loop enters, kept until it is known to be durable."""

    number: int
    """What the worker's own row says once it is committed."""
    before: Report
    """What the run had done when it began."""
    ended: list[tuple[Item, Outcome]]
    begun: deque[Call] = field(default_factory=deque)
    """In the end: those not yet given to a sender."""
    is_durable: bool = False


class Duty(Protocol):
    """What a run that does not end by itself has to do besides sending."""

    @property
    def interval(self) -> float:
        """Seconds that it waits for news at most."""

    def do_some(self, *, is_idle: bool) -> bool:
        """Do a short piece of what is due, since nothing begins meanwhile; whether something was done.

        `is_idle`: there is nothing to send.
        """


def dispatch_slice(*, max_time: float = 50, limit: int | None = None, stop: Event | None = None) -> Report:
    """Send what is queued and due, for at most `max_time` seconds and `limit` messages: what `send_mail` runs.

    For schedulers: overlapping calls, in as many processes and hosts as you like, share the work. Set `stop` to end
    early: what is in flight ends and is recorded, the rest is given back.
    """
    return Dispatcher("send_mail", max_time=max_time, limit=limit, stop=stop).run()


class Dispatcher:
    """One run over the queue.

    `deferred=True` sends what is deferred and due and touches nothing else; otherwise what is queued, and the
    uncertain mail whose window is over; with `retries=True` both, and then deferred mail never takes more than half of
    the senders. `streams` restricts it to some streams, `only` to some messages: that is all it touches then.
    """

    def __init__(
        self,
        command: str,
        *,
        deferred: bool = False,
        retries: bool = False,
        streams: Collection[str] | None = None,
        only: Collection[UUID] | None = None,
        max_time: float | None = 50,
        limit: int | None = None,
        stop: Event | None = None,
        on_progress: Callable[[Report], None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or get_settings()
        self.using = router.db_for_write(Message)
        self.touches_others = not deferred and only is None
        self.limit = limit
        self.stop = stop or Event()
        self.on_progress = on_progress
        self.ends_at = float("inf") if max_time is None else time.monotonic() + max_time
        self.report = Report(command)
        self.health = Health(self.settings)
        self.team: Team[Call] = Team(self._team_size(), grace_seconds=self.settings.lease_margin_seconds / 2)
        self.claims = Claims(self.health, deferred=deferred, retries=retries, streams=streams, only=only)
        self.in_flight: dict[UUID, Item] = {}
        self.ended: list[tuple[Item, Outcome]] = []
        """What came of handovers, until it is durable."""
        self.turn: Turn | None = None
        """The one under way: an error leaves it behind, and the worker's row knows whether it was committed."""
        self.turn_numbers = count(1)
        self.composer = Composer(self.health)
        self.stock = Stock(self.composer, self.health, self.team)
        self.ledger = Ledger(self.health, self.composer, self.report)
        self.worker: Worker | None = None
        self.direct: Claim | None = None
        """The one message of `run_direct()`."""
        self.is_dry = False
        """Whether there was nothing left to claim when it last looked."""
        self.has_retries = False
        """Whether there may be deferred mail left to claim, besides."""
        self.has_news = False
        """Whether somebody has queued something since it last looked."""
        self.duty: Duty | None = None
        """In `run_on()`."""
        self.looked_at = 0.0
        self.looked_beside_at = 0.0
        self.looked_for_retries_at = float("-inf")
        self.saw_mail = False
        self.heartbeat_at = 0.0
        self.alarms: list[Thread] = []
        self.started_at = time.monotonic()
        self.stopped_at = float("inf")
        self.trouble_since = float("inf")
        """Since when the database fails."""

    # The run

    def run(self) -> Report:
        """Send until there is nothing left to do, or it is time to stop.

        Raises `DatabaseLost` when the database did not come back in the time of this run.
        """
        with self._orderly_end():
            self._persist(self._keep_house)
            self._loop()
            self._persist(self._look_back)
        return self.report

    def run_on(self, duty: Duty) -> Report:
        """Send until it is time to stop, with `duty` between the turns; where nothing is left to do, wait for news."""
        self.duty = duty
        with self._orderly_end():
            self._persist(self._sign_on)
            while not self._is_over():
                self._persist(self._look_around)
                self._loop()
                if not self._do_duty(is_idle=True):
                    self._rest(duty.interval)
        return self.report

    def tell_news(self) -> None:
        """Somebody has queued something: let a run look for it at once. For any thread."""
        if not self.has_news:
            self.has_news = True
            self.team.wake()

    def run_direct(self, message: Message, lease: Lease) -> Report:
        """Send this one message, held under `lease`, and nothing else; it ends in a final state or is kept."""
        self.ledger.is_direct = self.is_dry = True
        self.worker, self.direct = lease.worker, Claim([message], lease)
        with self._orderly_end():
            self._persist(self._begin_directly)
            self._loop()
            self._persist(message.refresh_from_db)
        return self.report

    def _begin_directly(self) -> None:
        self.health.refresh()
        if self.direct and not self.stock:
            self._stock_up(self.direct)
            self._compose_next()

    def _loop(self) -> None:
        while not self._is_done():
            self._persist(self._step)
            self._do_duty(is_idle=False)

    def _is_over(self) -> bool:
        return self._must_stop() or self._left == 0

    def _do_duty(self, *, is_idle: bool) -> bool:
        """Do a piece of what there is to do besides; whether something was done, which may have given mail to send."""
        done: list[bool] = []
        if self.duty is not None and not self._must_stop():
            duty = self.duty
            self._persist(lambda: done.append(duty.do_some(is_idle=is_idle)))
        if any(done):  # not what it was before: another thread may have set it meanwhile
            self.has_news = True
        return any(done)

    def _rest(self, seconds: float) -> None:
        """Wait for news, for what comes late, or for the end; and say now and then that this worker lives."""
        ends_at = time.monotonic() + max(seconds, SHORTEST_REST_SECONDS)
        while not (self.has_news or self.ended or self._is_over()) and (left := ends_at - time.monotonic()) > 0:
            self._collect(wait_seconds=min(left, WAIT_SECONDS))
            self._persist(self._heartbeat_if_due)

    def _step(self) -> None:
        """One turn: record what has ended, begin what can go, claim what comes next; all in one commit."""
        self._collect(wait_seconds=self._patience())
        self._hear_news()
        turn = self._next_turn()
        stock_count = len(self.stock)
        # By itself: it may write into a provider's row, and messages are locked before providers.
        self.health.refresh()
        begun_at = time.monotonic()
        with transaction.atomic(using=self.using):
            ready = [item for item in self.stock if item.is_ready]
            concerned = [item.message.pk for item in (*ready, *(item for item, _outcome in turn.ended))]
            rows = Message.objects.held(concerned) if concerned else {}
            returned_count = self.ledger.given_back.total()
            self._settle(turn, rows)
            claim = self._claim_more_urgent()
            if claim is None:
                self._begin(turn, rows)
            if self.ledger.given_back.total() > returned_count or any(item.is_probe for item, _outcome in turn.ended):
                self.is_dry = self.ledger.is_direct  # there may be something that can go at once
            claim = claim or self._claim() or self._claim_retries()
            if turn.ended or claim or len(self.stock) < stock_count:
                self._heartbeat(turn)
            else:
                self._heartbeat_if_due()
        # It is durable now; what follows asks the database for words, and for nothing else.
        self._confirm(turn)
        while turn.begun:
            self._hand_over(turn.begun[0], begun_at=begun_at)
            turn.begun.popleft()
        if claim:
            self._stock_up(claim)
        self._compose_next()
        if self.on_progress is not None:
            self.on_progress(self.report)

    def _collect(self, *, wait_seconds: float) -> None:
        """Wait for a handover to end, and note what came of each message that it carried; or for news."""
        for call, outcomes in self.team.collect(wait_seconds=wait_seconds):
            self.ended += zip(call.items, outcomes, strict=True)
            if any(isinstance(outcome, CallRefused) for outcome in outcomes):
                self.stock.note_refused_call(call.provider)

    def _hear_news(self) -> None:
        if self.has_news:
            self.has_news = self.is_dry = False
            self.looked_beside_at = float("-inf")

    def _next_turn(self) -> Turn:
        self.turn = Turn(next(self.turn_numbers) % TURNS, self.report.copy(), list(self.ended))
        return self.turn

    def _settle(self, turn: Turn, rows: Mapping[UUID, Hold]) -> None:
        # Copies: one that goes elsewhere at once gets another number and provider, should this commit fail or not.
        ended = [(item if outcome.kind is Kind.ACCEPTED else copy(item), outcome) for item, outcome in turn.ended]
        self.stock.put_first(self.ledger.settle(ended, rows))
        for item, _outcome in ended:
            self._forget(item)

    def _forget(self, item: Item) -> None:
        """It is not in flight any more; but a later handover of the same message may be."""
        held = self.in_flight.get(item.message.pk)
        if held is not None and held.number == item.number:
            del self.in_flight[item.message.pk]

    def _confirm(self, turn: Turn) -> None:
        """It is durable: forget what it has recorded, tell the admin."""
        turn.is_durable = True
        del self.ended[: len(turn.ended)]
        turn.ended.clear()  # it holds their mail in memory
        self._raise_alarms()

    def _raise_alarms(self) -> None:
        self.alarms += [send_alert(alert) for alert in self.health.incidents.alerts]
        self.health.incidents.alerts.clear()

    def _hand_over(self, call: Call, *, begun_at: float) -> None:
        """Give it to a sender, unless the commit took so long that a lease could end before the handover does."""
        if not call.is_trusted:
            self.ended += [(item, BEGUN_TOO_LATE) for item in call.items]
            return
        until = begun_at + self.settings.send_deadline_seconds
        self.team.send(call, [_composed(item) for item in call.items], call.provider, until=until, key=call.key)

    def _is_done(self) -> bool:
        if self.in_flight:
            return False
        return self._is_through() or self._must_stop()

    def _is_through(self) -> bool:
        """Whether there is nothing left to do, nor will be in a moment."""
        if not self.is_dry or self.has_retries or self.stock or (self.claims.suspects and self._batch() > 0):
            return False
        if self.ledger.is_direct or self.worker is None or self._left == 0:
            return True
        # A provider that asks for a moment is waited for: by the second, where it limits us by the second.
        ends = [seconds for seconds in self.health.throttle_ends() if seconds <= LONGEST_MOMENT_SECONDS]
        seconds_since_look = time.monotonic() - self.looked_at
        if any(-seconds_since_look <= seconds <= 0 for seconds in ends):
            return False  # it takes mail again, and nobody has looked since
        soon = [seconds for seconds in ends if seconds > 0]
        return not soon or not self.claims.is_blocked(in_seconds=min(soon) + LOOK_AGAIN_SECONDS)

    def _must_stop(self) -> bool:
        """Whether this run may begin nothing more; the report says why."""
        if self.stop.is_set():
            self.report.stopped = "signal"
            self.stopped_at = min(self.stopped_at, time.monotonic())
        elif time.monotonic() >= self.ends_at:
            self.report.stopped = "max_time"
        else:
            return False
        return True

    def _patience(self) -> float:
        """How long to wait for a handover to end: not at all while there is something better to do."""
        if self.ended:
            return 0
        if pause_seconds := self.health.pause_seconds:
            return min(pause_seconds, WAIT_SECONDS)
        if self.stock.can_begin():
            return WAIT_SECONDS if self.in_flight and self._must_stop() else 0
        if not self.in_flight and not self.stock and (self.has_retries or not self.is_dry):
            return 0
        if not self.stock or not self.health.limits.bind():
            return WAIT_SECONDS
        # Not all workers at the same instant, since the first may leave nothing to the others.
        return min(self.health.limits.seconds_until_free() + random.uniform(0, LIMIT_SECONDS), WAIT_SECONDS)  # noqa: S311

    @contextmanager
    def _orderly_end(self) -> Iterator[None]:
        """However the run ends: record what is known, give back what was not begun, close jobs, say goodbye."""
        try:
            yield
            self._persist(self._give_back)
        except DatabaseLost:
            self._name_unsaved()
            raise
        except BaseException:
            self._save_what_is_known()
            self._name_unsaved()
            raise
        finally:
            self._close()

    def _save_what_is_known(self) -> None:
        """After an error: let what is in flight end, and record it, lest mail that has arrived be sent again."""
        ends_at = time.monotonic() + self.settings.send_deadline_seconds
        while self.team.busy_count and time.monotonic() < ends_at:
            self._collect(wait_seconds=WAIT_SECONDS)
        for save in (self._recover, self._give_back):
            try:
                save()
            except Exception:
                # Whatever it is, it may be the error that ended the run: it must not keep the other from being done.
                logger.exception("after an error, not all that is known could be recorded")

    def _name_unsaved(self) -> None:
        """What may not be recorded is said aloud: a person may have to know."""
        for item, outcome in self.ended:
            text = "message %s: what came of its handover to %s may not be recorded: %s: %s"
            logger.error(text, item.message.pk, item.provider, outcome.kind, outcome)

    def _give_back(self) -> None:
        if self.worker is None:
            return
        with transaction.atomic(using=self.using):
            Message.objects.release_all(self.worker)
            # The larger one: asked again because the answer to the commit was lost, there is nothing left to finish.
            self.report.jobs_done = max(self.report.jobs_done, MessageJob.objects.finish())
            self.worker.heartbeat(handled_count=self.report.outcomes.total(), stopping=True)

    def _close(self) -> None:
        self.team.close()
        ends_at = time.monotonic() + self.settings.send_deadline_seconds
        for thread in self.alarms:
            thread.join(timeout=max(ends_at - time.monotonic(), 0))
        if self._left == 0 and self.report.stopped == "done":
            self.report.stopped = "limit"
        self.report.seconds = time.monotonic() - self.started_at

    def _keep_house(self) -> None:
        """Before the first claim: rescue what lost workers left, close what has expired, look for work."""
        if self.touches_others:
            if Message.objects.overdue_leases().exists():
                self.report.rescued += self._rescue()
            if Message.objects.expired().exists():
                self.report.expired += Message.objects.expire(must_stop=self._must_stop)
        self.saw_mail = self.claims.has_mail()
        if self.saw_mail and self.worker is None:
            self.health.refresh()
            self.team.size = self._team_size()
            if self.health.can_send():
                # In a commit of its own: what this worker has claimed and begun is found by it, whatever fails later.
                self.worker = Worker.objects.register(self.report.command)
        self.is_dry = self.worker is None

    def _rescue(self) -> int:
        return Message.objects.rescue(
            window=lambda message: window_seconds(message, settings=self.settings), must_stop=self._must_stop
        )

    def _sign_on(self) -> None:
        self.health.refresh()
        self.team.size = self._team_size()
        if self.worker is None:
            self.worker = Worker.objects.register(self.report.command)

    def _look_around(self) -> None:
        """Whether anything is due: that is all it asks, as long as nothing is."""
        was_told, self.has_news = self.has_news, False
        found = not was_told and self.claims.has_mail()
        self.is_dry = not (was_told or found or self.ended)
        self.has_retries = found and len(self.claims.lanes) > 1
        if not was_told:
            self.looked_for_retries_at = time.monotonic()
        self._heartbeat_if_due()

    def begin_anew(self) -> None:
        """Forget what each run finds out for itself, as one that goes on for days must now and then."""
        self.team.size = self._team_size()
        self.composer.begin_anew()
        self.claims.begin_anew()
        self.stock.begin_anew()
        self.health.begin_anew()
        self.alarms = [thread for thread in self.alarms if thread.is_alive()]

    def _look_back(self) -> None:
        if self.report.stopped == "done" and self.saw_mail:
            self.report.is_blocked = self.claims.is_blocked(whatever_the_limits=True)
            self.report.is_limited = self.claims.is_blocked() and not self.report.is_blocked

    # When the database fails

    def _persist(self, step: Callable[[], None]) -> None:
        """Take this step; after a database error that passes, wait, recover, and take it again."""
        for seconds in waits():
            try:
                if self.trouble_since < float("inf"):
                    self._recover()
                step()
                self.trouble_since = float("inf")
                return
            except DatabaseFault as error:
                if not may_try_again(error, using=self.using):
                    raise
                # Once is a deadlock, say, and not worth a mail from cron.
                level = logging.INFO if self.trouble_since == float("inf") else logging.WARNING
                logger.log(level, "the database failed, trying again in %.1f s: %s", seconds, one_line_of(error))
                self._sit_out(error, seconds)

    def _sit_out(self, error: DatabaseFault, seconds: float) -> None:
        """Wait so long, while what is in flight goes on. Raises `DatabaseLost` when there is no time left for that."""
        now = time.monotonic()
        self.trouble_since = min(self.trouble_since, now)
        while (left := now + seconds - time.monotonic()) > 0:
            self._collect(wait_seconds=min(left, WAIT_SECONDS))
            if self._is_hopeless():
                raise DatabaseLost(self._loss(error)) from error

    def _is_hopeless(self) -> bool:
        """Whether to stop waiting for the database: not before the run is over, and later with outcomes to record.

        What is sent directly has no such time: its caller waits no longer than for a provider.
        """
        if self.direct is not None:
            seconds = self.settings.lease_seconds if self._has_news() else self.settings.send_deadline_seconds
            return time.monotonic() >= self.trouble_since + seconds
        if not self._must_stop():
            return False
        ends_at = self.trouble_since + LAST_TRIES_SECONDS
        if self.stop.is_set() and self._has_news():
            ends_at = max(ends_at, self.stopped_at + self.settings.send_deadline_seconds)
        elif self._has_news():
            ends_at = self.trouble_since + self.settings.lease_seconds
        return time.monotonic() >= ends_at

    def _has_news(self) -> bool:
        return bool(self.ended or self.in_flight)

    def _loss(self, error: DatabaseFault) -> str:
        text = f"the database does not answer: {one_line_of(error)}"
        if self.ended:
            return f"{text}; {len(self.ended)} outcomes may not be recorded, the log names them"
        return f"{text}; what this run had claimed is sent by a later one"

    def _recover(self) -> None:
        """After an error: find out what was committed, enter the rest, give back all that isn't in flight."""
        if self.worker is None:
            return
        self._learn_fate()
        turn = self._next_turn()
        self.health.refresh(at_once=True)
        with transaction.atomic(using=self.using):
            rows = Message.objects.held([item.message.pk for item, _outcome in turn.ended])
            self._settle(turn, rows)
            if self.direct is None:
                Message.objects.release_all(self.worker)
            self._heartbeat(turn)
        self._confirm(turn)
        self._start_afresh()

    def _learn_fate(self) -> None:
        """Whether the turn that an error cut short was committed nevertheless: its answer may have been lost.

        If it was, what it began has an entry in the ledger and was never handed over: that is its outcome then.
        """
        turn = self.turn
        if turn is None:
            return
        if not turn.is_durable and self._me.last_turn() == turn.number:
            self._confirm(turn)
        begun = [item for call in turn.begun for item in call.items]
        for item in (*begun, *(item for item, _outcome in self.ended)):
            self._forget(item)
        if turn.is_durable:
            self.ended += [(item, NEVER_SENT) for item in begun]
        else:
            self.report.outcomes, self.report.sent_by = turn.before.outcomes, turn.before.sent_by
            self.health.incidents.alerts.clear()
        self.turn = None

    def _start_afresh(self) -> None:
        """With empty hands: what was in stock is anybody's again."""
        self.stock.clear()
        self.is_dry = self.direct is not None
        if self.direct and not self.in_flight:
            self._stock_up(self.direct)

    # Claim

    def _claim_more_urgent(self) -> Claim | None:
        """Take mail that goes before what is in stock: it is composed before anything else begins."""
        if not self.stock or not self.team.idle_count or self._may_not_claim():
            return None
        head = min(item.message.priority for item in self.stock)
        limit = min(self._batch(), self.team.idle_count)
        if head == 0 or limit <= 0:
            return None
        return self.claims.take_more_urgent(self._lease(), than=head, limit=limit)

    def _claim(self) -> Claim | None:
        """Take the next batch when the stock runs low."""
        if self._may_not_claim():
            return None
        if len(self.stock) >= self.team.size:
            return self._claim_beside()
        limit = self._batch()
        if self.claims.suspects and limit > 0:
            if self.in_flight or self.stock:
                return None
            return self.claims.take_suspect_or_more_urgent(self._lease(), limit=limit)
        if self.is_dry and time.monotonic() < self.looked_at + LOOK_AGAIN_SECONDS:
            return None
        self.looked_at = time.monotonic()
        if limit <= 0:
            # What is in flight may close a circuit, or come back; then there is more to do.
            self.is_dry = not self.in_flight and not self.stock
            return None
        lease = self._lease()
        claim = self.claims.take(lease, limit=limit)
        self.is_dry = claim is None or len(claim.messages) < limit
        return claim if claim is None or self.is_dry else self._with_owed(claim, lease)

    def _with_owed(self, claim: Claim, lease: Lease) -> Claim:
        """This claim, and besides it what streams with a share lack of it."""
        messages = list(claim.messages)
        in_hand = self.stock.streams() + Counter(message.stream for message in messages)
        for stream, missing in self.stock.shares.missing(in_hand, of=len(claim.messages)).items():
            limit = missing if self._left is None else min(missing, self._left - len(messages))
            if limit > 0 and (owed := self.claims.take_owed(stream, lease, limit=limit)):
                messages += owed.messages
        return Claim(messages, lease)

    def _claim_retries(self) -> Claim | None:
        """Take deferred mail as well, where that is this run's business: never more than half of the senders can send.

        So new mail finds a sender, however much there is that has failed before.
        """
        may_have_more = self.has_retries or time.monotonic() >= self.looked_for_retries_at + LOOK_AGAIN_SECONDS
        if len(self.claims.lanes) < 2 or not may_have_more or self._may_not_claim():
            return None
        if self.claims.suspects:
            self.has_retries = False  # each of them waits for empty hands
            return None
        if self.health.only_probes() and not self.is_dry:
            return None  # new mail makes the better probe
        items = (*self.stock, *self.in_flight.values())
        in_hand = sum(item.message.claimed_from == Status.DEFERRED for item in items)
        limit = min(max(self.team.size // 2, 1) - in_hand, self._batch())
        if limit <= 0:
            self.has_retries = self.has_retries and in_hand > 0
            return None
        self.looked_for_retries_at = time.monotonic()
        claim = self.claims.take_retries(self._lease(), limit=limit)
        self.has_retries = claim is not None and len(claim.messages) == limit
        return claim

    def _claim_beside(self) -> Claim | None:
        """Where the stock waits for a provider, slow or limited: take mail of other streams, lest it wait as well."""
        if not self.team.idle_count or self.claims.suspects:
            return None
        if time.monotonic() < self.looked_beside_at + LOOK_AGAIN_SECONDS:
            return None
        held_up, limit, claim = self.stock.held_up(), self._batch(), None
        if held_up and limit > 0 and len(self.stock) - len(held_up) < self.team.size:
            streams = {item.message.stream for item in held_up}
            claim = self.claims.take(self._lease(), limit=limit, but=streams)
            if claim is None:
                self.looked_beside_at = time.monotonic()
        return claim

    def _may_not_claim(self) -> bool:
        if self.ledger.is_direct or self._must_stop() or self.health.pause_seconds:
            return True
        return any(item.is_suspect for item in (*self.stock, *self.in_flight.values()))

    def _batch(self) -> int:
        """How many to claim at most."""
        return self.claims.batch(most=self._left)

    @property
    def _left(self) -> int | None:
        """How many more messages this run may take in hand; None: as many as there are."""
        if self.limit is None:
            return None
        return max(self.limit - self.report.outcomes.total() - len(self.stock) - len(self.in_flight), 0)

    def _lease(self) -> Lease:
        return Lease(self._me, trusted_until=time.monotonic() + self.settings.trusted_seconds)

    @property
    def _me(self) -> Worker:
        if self.worker is None:
            raise LookupError("nothing is claimed or begun before the worker has a row of its own")
        return self.worker

    # Compose

    def _stock_up(self, claim: Claim) -> None:
        messages = claim.messages if self.ledger.is_direct else self.claims.set_suspects_aside(claim)
        self.stock.add([Item(message, claim.lease, is_suspect=claim.is_suspect) for message in messages])

    def _compose_next(self) -> None:
        """Compose what can begin next, while others are being sent."""
        if not self._must_stop():
            self.stock.compose_next(in_flight=self.in_flight.values())
            self._raise_alarms()

    # Begin

    def _begin(self, turn: Turn, rows: Mapping[UUID, Hold]) -> None:
        """Enter as many as there are idle senders; none in a run that must stop, or while this host pauses."""
        if self._must_stop() or self.health.pause_seconds:
            return
        for item in self.stock.take_untrusted():
            self._let_go(item)
        if not self.stock.can_begin():
            return
        self.health.lock_limits()
        chosen = self.stock.take()
        if not chosen:
            return
        begun = self.ledger.begin(chosen, rows, worker=self._me)
        turn.begun.extend(begun)
        self.in_flight.update((item.message.pk, item) for call in begun for item in call.items)

    def _let_go(self, item: Item) -> None:
        """Give back a message whose lease could end before its handover does."""
        if self.ledger.is_direct:
            self.ledger.conclude(item, Verdict(Status.DEAD, "given up: no provider took it while its caller waited"))
            return
        Message.objects.release([item.message.pk], item.lease)
        self.is_dry = False

    # Around it

    def _team_size(self) -> int:
        """No more threads than all providers together may have connections."""
        policies = self.health.settings.providers.values()
        allowed = [policy.connections or self.settings.connections for policy in policies]
        return max(1, min(self.settings.connections, sum(allowed)))

    def _heartbeat(self, turn: Turn | None = None) -> None:
        """Say that this worker lives; and, in the commit of a turn that changes something, that it was committed."""
        self.heartbeat_at = time.monotonic() + HEARTBEAT_SECONDS
        self._me.heartbeat(handled_count=self.report.outcomes.total(), turn=turn.number if turn else None)

    def _heartbeat_if_due(self) -> None:
        if self.worker is not None and time.monotonic() >= self.heartbeat_at:
            self._heartbeat()


def _composed(item: Item) -> Mail:
    if item.email is None:
        raise ValueError(f"message {item.message.pk} was begun without having been composed")
    return item.email
