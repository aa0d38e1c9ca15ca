"""The loop: claim, compose, begin, send, settle.

One thread, the one that called, talks to the database; the senders talk to providers, outside any transaction. The
End of one handover and the Begin of the next share a commit, as do those of all connections that happen to be ready.
So a crash leaves in doubt what was in flight, one message for each connection, and nothing else.

When the database fails in passing, a run keeps what it knows, begins nothing, and goes on once the database answers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from threading import Event, Thread
from typing import Protocol
from uuid import UUID

from django.db import router, transaction

from ..backends.wire import Mail
from ..conf import Settings, get_settings
from ..errors import DatabaseLost
from ..models import Lease, Message, MessageJob, Worker
from ..models.messages import Hold, Status, Verdict
from ..outcomes import Kind
from .alerts import send_alert
from .bounds import Bounds
from .claims import Claims
from .composer import Composer
from .handovers import BEGUN_TOO_LATE, WAIT_SECONDS, Handovers, Turn
from .health import Health
from .intake import Intake
from .items import Call, Claim, Item
from .ledger import Ledger
from .recovery import Recovery
from .report import Report
from .senders import Team
from .stock import Stock
from .verdict import window_seconds

HEARTBEAT_SECONDS = 10.0
SHORTEST_REST_SECONDS = 0.05
"""Which a worker that waits for news waits at least."""
LIMIT_SECONDS = 0.05
"""Within how long after a provider's limit leaves something again the loop looks, where it waits for that."""


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
        self.on_progress = on_progress
        self.report = Report(command)
        self.bounds = Bounds(self.report, max_time=max_time, limit=limit, stop=stop or Event())
        self.health = Health(self.settings)
        self.team: Team[Call] = Team(self._team_size(), grace_seconds=self.settings.lease_margin_seconds / 2)
        self.claims = Claims(self.health, deferred=deferred, retries=retries, streams=streams, only=only)
        self.composer = Composer(self.health)
        self.stock = Stock(self.composer, self.health, self.team)
        self.handovers = Handovers(self.team, self.stock)
        self.intake = Intake(self.claims, self.stock, self.handovers, self.bounds, new_lease=self._new_lease)
        self.ledger = Ledger(self.health, self.composer, self.report)
        self.recovery = Recovery(
            self.handovers, self.bounds, settings=self.settings, using=self.using, recover=self._recover
        )
        self.worker: Worker | None = None
        self.direct: Claim | None = None
        """The one message of `run_direct()`."""
        self.duty: Duty | None = None
        """In `run_on()`."""
        self.heartbeat_at = 0.0
        self.alarms: list[Thread] = []

    # The run

    def run(self) -> Report:
        """Send until there is nothing left to do, or it is time to stop.

        Raises `DatabaseLost` when the database did not come back in the time of this run.
        """
        with self._orderly_end():
            self.recovery.persist(self._keep_house)
            self._loop()
            self.recovery.persist(self._look_back)
        return self.report

    def run_on(self, duty: Duty) -> Report:
        """Send until it is time to stop, with `duty` between the turns; where nothing is left to do, wait for news."""
        self.duty = duty
        with self._orderly_end():
            self.recovery.persist(self._sign_on)
            while not self._is_over():
                self.recovery.persist(self._look_around)
                self._loop()
                if not self._do_duty(is_idle=True):
                    self._rest(duty.interval)
        return self.report

    def run_direct(self, message: Message, lease: Lease) -> Report:
        """Send this one message, held under `lease`, and nothing else; it ends in a final state or is kept."""
        self.ledger.is_direct = self.recovery.is_direct = True
        self.worker, self.direct = lease.worker, Claim([message], lease)
        with self._orderly_end():
            self.recovery.persist(self._begin_directly)
            self._loop()
            self.recovery.persist(message.refresh_from_db)
        return self.report

    def tell_news(self) -> None:
        """Somebody has queued something: let a run look for it at once. For any thread."""
        self.intake.tell_news()

    def begin_anew(self) -> None:
        """Forget what each run finds out for itself, as one that goes on for days must now and then."""
        self.team.size = self._team_size()
        self.composer.begin_anew()
        self.claims.begin_anew()
        self.stock.begin_anew()
        self.health.begin_anew()
        self.alarms = [thread for thread in self.alarms if thread.is_alive()]

    # Before the loop

    def _keep_house(self) -> None:
        """Before the first claim: rescue what lost workers left, close what has expired, look for work."""
        if self.touches_others:
            if Message.objects.overdue_leases().exists():
                self.report.rescued += Message.objects.rescue(
                    window=lambda message: window_seconds(message, settings=self.settings),
                    must_stop=self.bounds.must_stop,
                )
            if Message.objects.expired().exists():
                self.report.expired += Message.objects.expire(must_stop=self.bounds.must_stop)
        if self.intake.look_first():
            self._sign_on()

    def _sign_on(self) -> None:
        """Register this worker, unless that is for nothing: in a run that ends by itself while nothing can be sent."""
        self.health.refresh()
        self.team.size = self._team_size()
        if self.duty is not None or self.health.can_send():
            # In a commit of its own: what this worker has claimed and begun is found by it, whatever fails later.
            self.worker = Worker.objects.register(self.report.command)
            self.intake.open()

    def _look_around(self) -> None:
        self.intake.look_around()
        self._heartbeat_if_due()

    def _begin_directly(self) -> None:
        self.health.refresh()
        if self.direct and not self.stock:
            self._stock_up(self.direct)
            self._compose_next()

    # The loop

    def _loop(self) -> None:
        while not self._is_done():
            self.recovery.persist(self._step)
            self._do_duty(is_idle=False)

    def _is_done(self) -> bool:
        if self.handovers.in_flight:
            return False
        return (not self.stock and self.intake.is_through()) or self.bounds.must_stop()

    def _step(self) -> None:
        """One turn: record what has ended, begin what can go, claim what comes next; all in one commit."""
        self.handovers.collect(wait_seconds=self._patience())
        self.intake.hear_news()
        turn = self.handovers.next_turn(self.report)
        stock_count = len(self.stock)
        # By itself: it may write into a provider's row, and messages are locked before providers.
        self.health.refresh()
        begun_at = time.monotonic()
        with transaction.atomic(using=self.using):
            asked = {item.message.pk for item in (*self.stock.next(), *(item for item, _outcome in turn.ended))}
            rows = Message.objects.held(asked) if asked else {}
            returned_count = self.ledger.given_back.total()
            self._settle(turn, rows)
            claim = self.intake.take_more_urgent()
            if claim is None:
                self._begin(turn, rows, among=asked)
            if self.ledger.given_back.total() > returned_count or any(item.is_probe for item, _outcome in turn.ended):
                self.intake.look_again()  # there may be something that can go at once
            claim = claim or self.intake.take()
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

    def _patience(self) -> float:
        """How long to wait for a handover to end: not at all while there is something better to do."""
        in_flight = self.handovers.in_flight
        if self.handovers.ended:
            return 0
        if pause_seconds := self.health.pause_seconds:
            return min(pause_seconds, WAIT_SECONDS)
        if self.stock.can_begin():
            return WAIT_SECONDS if in_flight and self.bounds.must_stop() else 0
        if not in_flight and not self.stock and self.intake.has_more:
            return 0
        if not self.stock or not self.health.limits.bind():
            return WAIT_SECONDS
        # Not all workers at the same instant, since the first may leave nothing to the others.
        return min(self.health.limits.seconds_until_free() + random.uniform(0, LIMIT_SECONDS), WAIT_SECONDS)  # noqa: S311

    def _settle(self, turn: Turn, rows: Mapping[UUID, Hold]) -> None:
        # Copies: one that goes elsewhere at once gets another number and provider, should this commit fail or not.
        ended = [(item if outcome.kind is Kind.ACCEPTED else copy(item), outcome) for item, outcome in turn.ended]
        self.stock.put_first(self.ledger.settle(ended, rows))
        for item, _outcome in ended:
            self.handovers.forget(item)

    def _begin(self, turn: Turn, rows: Mapping[UUID, Hold], *, among: Container[UUID]) -> None:
        """Enter as many as there are idle senders; none in a run that must stop, or while this host pauses.

        `among` are those whose rows were asked for: what has none is gone, and leaves the stock.
        """
        if self.bounds.must_stop() or self.health.pause_seconds:
            return
        for item in self.stock.take_untrusted():
            self._let_go(item)
        if not self.stock.can_begin():
            return
        self.health.lock_limits()
        if chosen := self.stock.take(among=among):
            self.handovers.begin(turn, self.ledger.begin(chosen, rows, worker=self._me))

    def _let_go(self, item: Item) -> None:
        """Give back a message whose lease could end before its handover does."""
        if self.ledger.is_direct:
            self.ledger.conclude(item, Verdict(Status.DEAD, "given up: no provider took it while its caller waited"))
            return
        Message.objects.release([item.message.pk], item.lease)
        self.intake.look_again()

    def _confirm(self, turn: Turn) -> None:
        """It is durable: forget what it has recorded, tell the admin."""
        self.handovers.confirm(turn)
        self._raise_alarms()

    def _hand_over(self, call: Call, *, begun_at: float) -> None:
        """Give it to a sender, unless the commit took so long that a lease could end before the handover does."""
        if not call.is_trusted:
            self.handovers.ended += [(item, BEGUN_TOO_LATE) for item in call.items]
            return
        until = begun_at + self.settings.send_deadline_seconds
        self.team.send(call, [_composed(item) for item in call.items], call.provider, until=until, key=call.key)

    def _stock_up(self, claim: Claim) -> None:
        messages = claim.messages if self.ledger.is_direct else self.claims.set_suspects_aside(claim)
        self.stock.add([Item(message, claim.lease, is_suspect=claim.is_suspect) for message in messages])

    def _compose_next(self) -> None:
        """Compose what can begin next, while others are being sent."""
        if not self.bounds.must_stop():
            self.stock.compose_next(in_flight=self.handovers.in_flight.values())
            self._raise_alarms()

    # Between the turns of a run that goes on

    def _is_over(self) -> bool:
        return self.bounds.must_stop() or self.intake.left == 0

    def _do_duty(self, *, is_idle: bool) -> bool:
        """Do a piece of what there is to do besides; whether something was done, which may have given mail to send."""
        done: list[bool] = []
        if self.duty is not None and not self.bounds.must_stop():
            duty = self.duty
            self.recovery.persist(lambda: done.append(duty.do_some(is_idle=is_idle)))
        if any(done):  # not what it was before: another thread may have set it meanwhile
            self.intake.has_news = True
        return any(done)

    def _rest(self, seconds: float) -> None:
        """Wait for news, for what comes late, or for the end; and say now and then that this worker lives."""
        ends_at = time.monotonic() + max(seconds, SHORTEST_REST_SECONDS)
        while not (self.intake.has_news or self.handovers.ended or self._is_over()):
            if (left := ends_at - time.monotonic()) <= 0:
                return
            self.handovers.collect(wait_seconds=min(left, WAIT_SECONDS))
            self.recovery.persist(self._heartbeat_if_due)

    # After an error

    def _recover(self) -> None:
        """Find out what was committed, enter the rest, give back all that isn't in flight; go on with empty hands."""
        if self.worker is None:
            return
        self._learn_fate()
        turn = self.handovers.next_turn(self.report)
        self.health.refresh(at_once=True)
        with transaction.atomic(using=self.using):
            rows = Message.objects.held([item.message.pk for item, _outcome in turn.ended])
            self._settle(turn, rows)
            if self.direct is None:
                Message.objects.release_all(self.worker)
            self._heartbeat(turn)
        self._confirm(turn)
        self.stock.clear()
        self.intake.look_again()
        if self.direct and not self.handovers.in_flight:
            self._stock_up(self.direct)

    def _learn_fate(self) -> None:
        """Whether the turn that the error cut short was committed nevertheless: its answer may have been lost."""
        turn = self.handovers.turn
        if turn is None:
            return
        if not turn.is_durable and self._me.last_turn() == turn.number:
            self._confirm(turn)
        if not turn.is_durable:
            self.report.outcomes, self.report.sent_by = turn.before.outcomes, turn.before.sent_by
            self.health.incidents.alerts.clear()
        self.handovers.abandon(turn)

    # The end

    def _look_back(self) -> None:
        if self.report.stopped == "done" and self.intake.saw_mail:
            self.report.is_blocked = self.claims.is_blocked(whatever_the_limits=True)
            self.report.is_limited = self.claims.is_blocked() and not self.report.is_blocked

    @contextmanager
    def _orderly_end(self) -> Iterator[None]:
        """However the run ends: record what is known, give back what was not begun, close jobs, say goodbye."""
        try:
            yield
            self.recovery.persist(self._give_back)
        except DatabaseLost:
            self.recovery.name_unsaved()
            raise
        except BaseException:
            self.recovery.save_what_is_known(give_back=self._give_back)
            self.recovery.name_unsaved()
            raise
        finally:
            self._close()

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
        self.bounds.close(in_hand=len(self.stock) + len(self.handovers.in_flight))

    # Around it

    @property
    def _me(self) -> Worker:
        if self.worker is None:
            raise LookupError("nothing is claimed or begun before the worker has a row of its own")
        return self.worker

    def _new_lease(self) -> Lease:
        return Lease(self._me, trusted_until=time.monotonic() + self.settings.trusted_seconds)

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

    def _raise_alarms(self) -> None:
        self.alarms += [send_alert(alert) for alert in self.health.incidents.alerts]
        self.health.incidents.alerts.clear()


def _composed(item: Item) -> Mail:
    if item.email is None:
        raise ValueError(f"message {item.message.pk} was begun without having been composed")
    return item.email
