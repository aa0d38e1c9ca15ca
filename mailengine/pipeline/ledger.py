"""Begin and End: what is entered before the first byte of a handover, and after its last.

Both run inside the caller's transaction, and take all handovers that begin or have ended together, with their `rows`
as `Message.objects.held()` has locked them. Messages are locked before providers, everywhere.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import router

from ..conf import Settings
from ..consent.policy import refusals_for
from ..consent.suppress import lift, suppress
from ..models import Attempt, Message, MessageJob, Suppression, Worker
from ..models.attempts import Record, Series
from ..models.bulk import select_among
from ..models.messages import Hold, Status, Verdict
from ..outcomes import Kind, Outcome
from ..providers.batch import CallRefused
from ..providers.connection import takes_key
from .composer import Composer
from .health import Health
from .items import Call, Item
from .objection import leave_out, objection_to, pending_addresses, suppressed_addresses
from .partial import note_outcomes, split_refused
from .report import Report
from .rounds import Result
from .verdict import back, final, if_alike, is_unclassified, late, verdict_for

logger = logging.getLogger("mailengine.dispatch")


@dataclass
class Ledger:
    """Enters the handovers of one run."""

    health: Health
    composer: Composer
    report: Report
    is_direct: bool = False
    """Its callers wait: what can't be sent now is not sent later."""
    given_back: Counter[UUID] = field(default_factory=Counter)
    """How often each message of this run went back to the queue."""
    _refused: set[UUID] = field(default_factory=set)
    """Messages that this run has counted as dead or deferred."""
    _keyed: dict[str, bool] = field(default_factory=dict)
    """By provider: whether it takes an idempotency key."""

    @property
    def settings(self) -> Settings:
        return self.health.settings

    # Begin

    def begin(self, calls: Sequence[Call], rows: Mapping[UUID, Hold], *, worker: Worker) -> list[Call]:
        """Enter in the ledger what goes out now, and return it.

        Looks again at all that may have changed since the claim, and settles what becomes of the others instead.
        """
        ours = [item for call in calls for item in call.items if self._is_ours(item, rows)]
        for item in ours:
            item.message.now = rows[item.message.pk].now
        records = Attempt.objects.records([item.message.pk for item in ours])
        jobs = self._job_statuses(ours)
        # Of what can't be composed, nobody knows whom it is for.
        refusals = self._refusals(item for item in ours if item.verdict is None)
        series = self._series(records)
        begun: set[UUID] = set()
        for item in ours:
            item.must_stay = self._must_stay(item.message, series)
            record = records.get(item.message.pk, Record())
            verdict = self._objection(item, record, jobs, refusals) or self._find_provider(item)
            if verdict is not None:
                self.conclude(item, verdict)
            else:
                self.health.note_begun(item.message, item.provider)
                item.number = record.last_number + 1
                item.message.provider = item.provider
                self._set_key(item, series)
                self._note_wait(item)
                begun.add(item.message.pk)
        self.health.limits.enter()
        return self._enter([item for item in ours if item.message.pk in begun], calls, worker=worker)

    def _enter(self, items: Sequence[Item], planned: Sequence[Call], *, worker: Worker) -> list[Call]:
        """Enter these items, and return them in the calls that were planned, as far as they still go together."""
        if not items:
            return []
        number_of = {item.message.pk: number for number, call in enumerate(planned) for item in call.items}
        calls: dict[object, Call] = {}
        for item in items:
            # A probe goes alone, and so does what goes elsewhere than was planned: how many would that provider take?
            is_alone = item.is_probe or item.provider != item.reserved
            together = item.message.pk if is_alone else number_of[item.message.pk]
            item.call = calls.setdefault(together, Call([]))
            item.call.items.append(item)
        Attempt.objects.begin(
            {item.message.pk: (item.number, item.provider) for item in items},
            worker=worker,
            now=items[0].message.now,
            together={
                i.message.pk: len(call.items) for call in calls.values() if len(call.items) > 1 for i in call.items
            },
        )
        return list(calls.values())

    def _is_ours(self, item: Item, rows: Mapping[UUID, Hold]) -> bool:
        """Whether nobody has rescued it, cancelled it or settled it late since it was claimed."""
        row = rows.get(item.message.pk)
        return row is not None and row.lease == item.lease.id

    def _objection(
        self, item: Item, record: Record, jobs: Mapping[int, str], refusals: Mapping[str, Mapping[str, str]]
    ) -> Verdict | None:
        """Why this item must not go after all; else its suppressed addresses are left out."""
        message = item.message
        if record.accepted:
            return Verdict(Status.SENT, "the ledger says that it was sent")
        refused = {} if item.verdict else refusals.get(message.stream, {})
        job_status = jobs.get(message.job_id) if message.job_id else None
        verdict = objection_to(message, job_status=job_status, refusals=refused, settings=self.settings) or item.verdict
        if verdict is None and (stopped := suppressed_addresses(message, refused)):
            leave_out(message, stopped)
            item.email = None
            self.composer.compose(item)
            verdict = item.verdict
        return verdict

    def _find_provider(self, item: Item) -> Verdict | None:
        """Set the item's provider, or say what becomes of it when none can take it now."""
        passed_over = {alias for alias in self.settings.providers if not self.health.limits.allow(alias, item.message)}
        passed_over |= item.tried
        if item.must_stay:
            passed_over |= set(self.settings.providers) - {item.message.provider}
        choice = self.health.choose(item.message, tried=passed_over, first=item.reserved)
        while choice is not None and choice.is_probe and not self.health.start_probe(choice.alias):
            # Another process was quicker. Not asked again: a repeatable read shows the probe as due all along.
            passed_over.add(choice.alias)
            self.health.refresh(at_once=True)
            choice = self.health.choose(item.message, tried=passed_over)
        if choice is None:
            return self._back_to_the_queue(item, "no provider can be used now")
        item.provider, item.is_probe = choice.alias, choice.is_probe
        self.composer.compose_for(item, choice.alias)
        return item.verdict

    def _series(self, records: Mapping[UUID, Record]) -> Mapping[tuple[UUID, str], Series]:
        """What may have arrived at providers that take an idempotency key, of messages that were handed over before."""
        if not records or not any(map(self._takes_key, self.settings.providers)):
            return {}
        return Attempt.objects.series(records)

    def _must_stay(self, message: Message, series: Mapping[tuple[UUID, str], Series]) -> bool:
        latest = series.get((message.pk, message.provider))
        if latest is None or not message.uncertain_count or not self._takes_key(message.provider):
            return False
        window = self.settings.uncertain_window(message.stream, priority=message.priority)
        return message.now - latest.ended_at < timedelta(seconds=window)

    def _takes_key(self, alias: str) -> bool:
        taken = self._keyed.get(alias)
        if taken is None:
            taken = self._keyed[alias] = takes_key(alias)
        return taken

    def _set_key(self, item: Item, series: Mapping[tuple[UUID, str], Series]) -> None:
        item.key, item.key_since = "", None
        if self._takes_key(item.provider):
            first = series.get((item.message.pk, item.provider))
            item.key = f"{item.message.pk}-{first.number if first else item.number}"
            item.key_since = first.begun_at if first else item.message.now

    def _note_wait(self, item: Item) -> None:
        message = item.message
        if item.number == 1 and message.available_at is not None:
            self.report.note_wait(message.stream, (message.now - message.available_at).total_seconds())

    # End

    def settle(self, ended: Sequence[tuple[Item, Outcome]], rows: Mapping[UUID, Hold]) -> list[Item]:
        """Enter what came of these handovers, and return those that are to begin elsewhere at once."""
        if not ended:
            return []
        # As the rows were locked: by then all of these had ended, and what begins in this commit begins no earlier.
        now = min((row.now for row in rows.values()), default=self.health.picture.now)
        ended, put_back = self._judged(ended, now=now)
        Attempt.objects.end_many(((item.message.pk, item.number, outcome) for item, outcome in ended), now=now)
        elsewhere, sent = [], []
        for item, outcome in ended:
            item.message.provider = item.provider  # not the one it was to go to next, had that been committed
            if self._is_plainly_sent(item, outcome, rows):
                sent.append((item, outcome))
                continue
            if is_unclassified(outcome):
                extra = {"message_id": str(item.message.pk), "provider": item.provider}
                logger.error("message %s: %s, which nobody foresaw", item.message.pk, outcome.code, extra=extra)
            self._suppress_bad_addresses(item.message, outcome)
            if isinstance(outcome, CallRefused):
                item.goes_alone, verdict = True, None
            else:
                item.tried.add(item.provider)
                if outcome.elsewhere:
                    item.refused_by.add(item.provider)
                verdict = self._verdict(item, outcome)
            is_ours = self._is_ours(item, rows)
            if is_ours and verdict is None:
                elsewhere.append(item)
                continue
            note_outcomes(item.message, outcome)
            if is_ours and outcome.kind is Kind.ACCEPTED:
                sent.append((item, outcome))
                settled = True
            elif is_ours and verdict is not None:
                settled = self.conclude(item, verdict, outcome=outcome)
            elif outcome.kind is Kind.UNCERTAIN:
                settled = False  # it counts as that already, by the rescue or by its time
            else:
                verdict = late(verdict, now=now)
                if self.is_direct:
                    verdict = final(verdict)
                settled = Message.objects.settle_late(item.message, verdict, number=item.number, outcome=outcome)
            if settled and outcome.refusals:
                split_refused(item.message, outcome, now=now, settings=self.settings)
        Message.objects.settle_sent(((item.message, outcome) for item, outcome in sent), now=now)
        for item, _outcome in sent:
            self.report.sent_by[item.provider] += 1
            self._count(item, Status.SENT)
        for provider, ids in put_back.items():
            self._put_back(ids, provider)
        return elsewhere

    def _is_plainly_sent(self, item: Item, outcome: Outcome, rows: Mapping[UUID, Hold]) -> bool:
        """Whether it is still ours, and its only recipient was accepted: what nearly every handover comes to."""
        is_whole = item.message.other_recipients is None and not outcome.refusals
        return outcome.kind is Kind.ACCEPTED and is_whole and self._is_ours(item, rows)

    def _judged(
        self, ended: Sequence[tuple[Item, Outcome]], *, now: datetime
    ) -> tuple[list[tuple[Item, Outcome]], Mapping[str, Collection[UUID]]]:
        """What came of these handovers in the light of what came before it, and what is to be put back by provider."""
        recurring = [item.message.pk for item, outcome in ended if outcome.tries]
        deferrals = Attempt.objects.deferrals(recurring) if recurring else {}
        judged = []
        for item, outcome in ended:
            if not outcome.tries:
                judged.append((item, outcome))
                continue
            earlier = [row for row in deferrals.get(item.message.pk, ()) if row.number < item.number]
            attempts = item.message.attempt_count
            judged.append((item, if_alike(outcome, earlier, provider=item.provider, attempt_count=attempts)))
        speaking = list(_that_say_something(judged))
        judgement = self.health.note([_result(*judged[place], now=now) for place in speaking])
        for place, outcome in zip(speaking, judgement.outcomes, strict=True):
            judged[place] = judged[place][0], outcome
        return judged, judgement.put_back

    def _put_back(self, ids: Collection[UUID], provider: str) -> None:
        """Undo what refusals did that were meant for us."""
        rows = Message.objects.put_back(ids, provider=provider)
        addresses = {entry["address"].casefold() for row in rows for entry in row.recipients}
        lift(addresses, reason=Suppression.Reason.REFUSED)
        ours = [row for row in rows if row.pk in self._refused]
        self._refused.difference_update(row.pk for row in ours)
        self.given_back.update(row.pk for row in ours)
        self.report.outcomes -= Counter(Status(row.status) for row in ours)
        logger.warning("%s messages refused by %s are put back: it refuses us, not them", len(rows), provider)

    def _verdict(self, item: Item, outcome: Outcome) -> Verdict | None:
        verdict = verdict_for(
            item.message,
            outcome,
            provider=item.provider,
            now=self.health.picture.now,
            settings=self.settings,
            another=not item.must_stay and self.health.another(item.message, tried=item.tried),
            others_left=not item.refused_by.issuperset(self.health.carriers(item.message.stream)),
            throttled_until=self.health.picture.circuit(item.provider).throttled_until,
            key_since=item.key_since,
            had_company=item.has_company,
        )
        if verdict is not None and verdict.keeps_due_time:
            return self._back_to_the_queue(item, verdict.reason, has_failed=not outcome.is_local)
        return verdict

    def _suppress_bad_addresses(self, message: Message, outcome: Outcome) -> None:
        refused = dict(outcome.refusals)
        if outcome.kind is Kind.REFUSED and len(message.recipients) == 1:
            refused[message.recipient] = outcome
        for address, refusal in refused.items():
            if refusal.address_is_bad:
                suppress(address.casefold(), reason=Suppression.Reason.REFUSED, detail=str(refusal))

    # Both

    def conclude(self, item: Item, verdict: Verdict, *, outcome: Outcome | None = None) -> bool:
        """Enter what becomes of a message that is ours; False when it no longer is."""
        if self.is_direct:
            verdict = final(verdict)
        if not Message.objects.settle(item.message, verdict, lease=item.lease, outcome=outcome):
            return False
        is_new = verdict.spends_attempt or verdict.is_uncertain_handover
        if verdict.is_asked_again or (verdict.status == item.message.claimed_from and not is_new):
            self.given_back[item.message.pk] += 1
            return True
        self._count(item, verdict.status)
        return True

    def _count(self, item: Item, status: Status) -> None:
        self.report.outcomes[status] += 1
        if status in {Status.DEAD, Status.DEFERRED}:
            self._refused.add(item.message.pk)
        if not logger.isEnabledFor(logging.INFO):
            return
        extra = {"message_id": str(item.message.pk), "status": str(status), "provider": item.provider}
        logger.info("message %s: %s", item.message.pk, status, extra=extra)

    def _back_to_the_queue(self, item: Item, reason: str, *, has_failed: bool = True) -> Verdict:
        """It stays due, so that it goes as soon as a provider can take it; but not over and over in one run.

        A probe that failed leaves the next one to another message: should it be its own doing, that shows it.
        """
        now = self.health.picture.now
        interval = timedelta(seconds=max(self.settings.probe_interval_seconds, 1))
        until = None
        if item.is_probe and has_failed and self.health.others_wait(item.provider):
            until = now + 2 * interval
        elif self.given_back[item.message.pk] >= self.settings.unhealthy_threshold:
            until = now + interval
        return back(item.message, reason, now=now, settings=self.settings, until=until)

    def _job_statuses(self, items: Iterable[Item]) -> dict[int, str]:
        ids = {item.message.job_id for item in items if item.message.job_id}
        using = router.db_for_write(MessageJob)
        return dict(select_among(MessageJob, ["id", "status"], key="id", values=ids, using=using))

    def _refusals(self, items: Iterable[Item]) -> dict[str, Mapping[str, str]]:
        """The suppressed addresses with their reasons, by stream."""
        by_stream: dict[str, set[str]] = {}
        for item in items:
            by_stream.setdefault(item.message.stream, set()).update(pending_addresses(item.message))
        return {stream: refusals_for(addresses, stream=stream) for stream, addresses in by_stream.items()}


def _that_say_something(ended: Sequence[tuple[Item, Outcome]]) -> Iterator[int]:
    """The places of those that are a round of their own: a call that fails has failed once, however many it carried."""
    told: set[tuple[Call | None, Kind]] = set()
    for place, (item, outcome) in enumerate(ended):
        if isinstance(outcome, CallRefused):
            continue
        if item.has_company and outcome.kind not in {Kind.REFUSED, Kind.DEFERRED}:
            if (item.call, outcome.kind) in told:
                continue
            told.add((item.call, outcome.kind))
        yield place


def _result(item: Item, outcome: Outcome, *, now: datetime) -> Result:
    return Result(
        alias=item.provider,
        outcome=outcome,
        stream=item.message.stream,
        was_probe=item.is_probe,
        recipient=item.message.recipient,
        message_id=item.message.pk,
        begun_at=item.message.now,  # since Begin
        ended_at=now,
    )
