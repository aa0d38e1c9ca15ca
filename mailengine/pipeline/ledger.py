"""Begin and End: what is entered before the first byte of a handover, and after its last.

Both run inside the caller's transaction, and take all handovers that begin or have ended together, with their `rows`
as `Message.objects.held()` has locked them. Messages are locked before providers, everywhere.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from ..conf import Settings
from ..consent.policy import refusals_for
from ..consent.suppress import suppress
from ..models import Attempt, Message, MessageJob, Suppression, Worker
from ..models.attempts import Record
from ..models.messages import Status, Verdict
from ..outcomes import Kind, Outcome
from .composer import Composer
from .health import Health, Result
from .items import Item
from .objection import leave_out, objection_to, pending_addresses, suppressed_addresses
from .partial import note_outcomes, split_refused
from .report import Report
from .verdict import back, final, late, verdict_for

logger = logging.getLogger("mailengine.dispatch")


@dataclass
class Ledger:
    """Enters the handovers of one run."""

    settings: Settings
    health: Health
    composer: Composer
    report: Report
    is_direct: bool = False
    """Its callers wait: what can't be sent now is not sent later."""
    given_back: Counter[UUID] = field(default_factory=Counter)
    """How often each message of this run went back to the queue."""

    # Begin

    def begin(self, items: Sequence[Item], rows: Mapping[UUID, Message], *, worker: Worker) -> list[Item]:
        """Enter in the ledger what goes out now, and return it.

        Looks again at all that may have changed since the claim, and settles what becomes of the others instead.
        """
        ours = [item for item in items if self._is_ours(item, rows)]
        for item in ours:
            item.message.now = rows[item.message.pk].now
        records = Attempt.objects.records([item.message.pk for item in ours])
        jobs, refusals = self._job_statuses(ours), self._refusals(ours)
        begun = []
        for item in ours:
            record = records.get(item.message.pk, Record())
            verdict = self._objection(item, record, jobs, refusals) or self._find_provider(item)
            if verdict is not None:
                self.conclude(item, verdict)
            else:
                item.number = record.last_number + 1
                item.message.provider = item.provider
                begun.append(item)
        if begun:
            numbers = {item.message.pk: (item.number, item.provider) for item in begun}
            Attempt.objects.begin(numbers, worker=worker, now=begun[0].message.now)
        return begun

    def _is_ours(self, item: Item, rows: Mapping[UUID, Message]) -> bool:
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
        if item.verdict is not None:
            return item.verdict
        refused = refusals.get(message.stream, {})
        job_status = jobs.get(message.job_id) if message.job_id else None
        verdict = objection_to(message, job_status=job_status, refusals=refused, settings=self.settings)
        stopped = suppressed_addresses(message, refused)
        if verdict is None and stopped:
            leave_out(message, stopped)
            recomposed = self.composer.item(message, item.lease)
            item.email, verdict = recomposed.email, recomposed.verdict
        return verdict

    def _find_provider(self, item: Item) -> Verdict | None:
        """Set the item's provider, or say what becomes of it when none can take it now."""
        choice = self.health.choose(item.message, tried=item.tried)
        while choice is not None and choice.is_probe and not self.health.start_probe(choice.alias):
            self.health.refresh(at_once=True)  # another process was quicker
            choice = self.health.choose(item.message, tried=item.tried)
        if choice is None:
            return self._back_to_the_queue(item, "no provider can be used now")
        item.provider, item.is_probe = choice.alias, choice.is_probe
        return None

    # End

    def settle(self, ended: Sequence[tuple[Item, Outcome]], rows: Mapping[UUID, Message]) -> list[Item]:
        """Enter what came of these handovers, and return those that are to begin elsewhere at once."""
        if not ended:
            return []
        self.health.note(Result(item.provider, outcome, item.message.stream, item.is_probe) for item, outcome in ended)
        now = self.health.now
        Attempt.objects.end_many(((item.message.pk, item.number, outcome) for item, outcome in ended), now=now)
        elsewhere, sent = [], []
        for item, outcome in ended:
            self._suppress_bad_addresses(item.message, outcome)
            item.tried.add(item.provider)
            if outcome.elsewhere:
                item.refused_by.add(item.provider)
            is_ours = self._is_ours(item, rows)
            verdict = self._verdict(item, outcome)
            if is_ours and verdict is None:
                elsewhere.append(item)
                continue
            note_outcomes(item.message, outcome)
            if is_ours and outcome.kind is Kind.ACCEPTED:
                sent.append((item, outcome))
                settled = True
            elif is_ours and verdict is not None:
                settled = self.conclude(item, verdict, outcome=outcome)
            else:
                verdict = late(verdict, now=now)
                settled = Message.objects.settle_late(item.message, verdict, number=item.number, outcome=outcome)
            if settled and outcome.refusals:
                split_refused(item.message, outcome, now=now, settings=self.settings)
        Message.objects.settle_sent(((item.message, outcome) for item, outcome in sent), now=now)
        for item, _outcome in sent:
            self.report.sent_by[item.provider] += 1
            self._count(item, Status.SENT)
        return elsewhere

    def _verdict(self, item: Item, outcome: Outcome) -> Verdict | None:
        verdict = verdict_for(
            item.message,
            outcome,
            provider=item.provider,
            now=self.health.now,
            settings=self.settings,
            another=self.health.another(item.message, tried=item.tried),
            others_left=not item.refused_by.issuperset(self.settings.aliases_for(item.message.stream)),
            throttled_until=self.health.circuit(item.provider).throttled_until,
        )
        if verdict is not None and verdict.keeps_due_time:
            return self._back_to_the_queue(item, verdict.reason)
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
        if verdict.status == item.message.claimed_from and not is_new:
            self.given_back[item.message.pk] += 1
            return True
        self._count(item, verdict.status)
        return True

    def _count(self, item: Item, status: Status) -> None:
        self.report.outcomes[status] += 1
        extra = {"message": str(item.message.pk), "status": str(status), "provider": item.provider}
        logger.info("message %s: %s", item.message.pk, status, extra=extra)

    def _back_to_the_queue(self, item: Item, reason: str) -> Verdict:
        """It stays due, so that it goes as soon as a provider can take it; but not over and over in one run.

        A probe that failed leaves the next one to another message: should it be its own doing, that shows it.
        """
        now = self.health.now
        interval = timedelta(seconds=max(self.settings.probe_interval_seconds, 1))
        until = None
        if item.is_probe and self.health.others_wait(item.message):
            until = now + 2 * interval
        elif self.given_back[item.message.pk] >= self.settings.unhealthy_threshold:
            until = now + interval
        return back(item.message, reason, now=now, settings=self.settings, until=until)

    def _job_statuses(self, items: Iterable[Item]) -> dict[int, str]:
        ids = {item.message.job_id for item in items if item.message.job_id}
        return dict(MessageJob.objects.filter(pk__in=ids).values_list("pk", "status")) if ids else {}

    def _refusals(self, items: Iterable[Item]) -> dict[str, Mapping[str, str]]:
        """The suppressed addresses with their reasons, by stream."""
        by_stream: dict[str, set[str]] = {}
        for item in items:
            by_stream.setdefault(item.message.stream, set()).update(pending_addresses(item.message))
        return {stream: refusals_for(addresses, stream=stream) for stream, addresses in by_stream.items()}
