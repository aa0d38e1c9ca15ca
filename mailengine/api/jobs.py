"""`/api/v1/jobs`: one mail to each of many, how far it has come, and to hold or end it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from django.db import router as databases
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from ninja import Query, Router, Status

from ..models import ApiKey, MessageJob
from ..models.api_keys import CANCEL, READ
from ..models.jobs import JobQuerySet
from ..pipeline.audience import find_audience
from ..pipeline.enqueue import JobOrder, place_job
from ..reporting.progress import progress_of
from .access import check_scope, check_stream, spend
from .document import with_files
from .door import caller_of, uploads_of
from .messages import READING, WRITING
from .once import once
from .orders import check_priority, id_of, job_from
from .paging import Paging, page_of
from .refusals import Refusal
from .schemas import FINDING, LISTING, MOVING, QUEUEING, Id, JobIn, JobInFullOut, JobsOut, QueuedOut

router = Router(tags=["jobs"])

SHOWN_PROBLEMS = 100
FOUND: dict[str, Any] = {"auth": READING, "response": {200: JobInFullOut, **FINDING}, "by_alias": True}
MOVED: dict[str, Any] = {**FOUND, "response": {200: JobInFullOut, **MOVING}}


class JobFilters(Paging):
    status: Literal[tuple(MessageJob.Status.values)] | None = None  # type: ignore[valid-type]


@router.post(
    "",
    auth=WRITING,
    response={201: QueuedOut, **QUEUEING},
    operation_id="createJob",
    openapi_extra=with_files(JobIn),
    summary="Queue a job",
)
def create(request: HttpRequest, response: HttpResponse, payload: JobIn) -> Any:
    """A mail of its own to each address, once however often it stands there; malformed ones are counted."""
    key = caller_of(request)
    answer = once(request, key, lambda: job_from(key, payload, uploads_of(request)), lambda order: _queue(key, order))
    response["Location"] = f"{request.path}/{answer['id']}"
    return Status(201, answer)


@router.get(
    "", auth=READING, response={200: JobsOut, **LISTING}, by_alias=True, operation_id="listJobs", summary="List jobs"
)
def list_jobs(request: HttpRequest, filters: Query[JobFilters]) -> Any:
    """Those of this client, the newest first."""
    key = caller_of(request)
    check_scope(key, READ)
    found = _jobs(key).defer("merge_data", "problems", "content__text", "content__html")
    if filters.status is not None:
        found = found.filter(status=filters.status)
    return page_of(found, filters, by="public_id", show=_shown)


@router.get("/{job_id}", **FOUND, operation_id="getJob", summary="See how far a job has come")
def retrieve(request: HttpRequest, job_id: Id) -> dict[str, Any]:
    """How many of its messages are where."""
    key = caller_of(request)
    check_scope(key, READ)
    return _shown_in_full(_find(key, job_id))


@router.post("/{job_id}/pause", **MOVED, operation_id="pauseJob", summary="Hold a job")
def pause(request: HttpRequest, job_id: Id) -> Any:
    """Nothing of it begins from now on; what is being handed over is not called back."""
    return _steer(request, job_id, lambda jobs: jobs.pause(f"paused: by {caller_of(request).client}"))


@router.post("/{job_id}/resume", **MOVED, operation_id="resumeJob", summary="Let a paused job go on")
def resume(request: HttpRequest, job_id: Id) -> Any:
    """It goes on where it stopped."""
    return _steer(request, job_id, JobQuerySet.resume)


@router.post("/{job_id}/cancel", **MOVED, operation_id="cancelJob", summary="End a job")
def cancel(request: HttpRequest, job_id: Id) -> Any:
    """What is not handed over yet is withdrawn, for good."""
    return _steer(request, job_id, JobQuerySet.cancel)


def _queue(key: ApiKey, order: JobOrder) -> dict[str, Any]:
    """Queue it in the caller's transaction. Raises `Refusal` where the key may not."""
    check_stream(key, order.terms.stream)
    check_priority(key, order.terms.priority, stream=order.terms.stream)
    if key.rate:
        spend(key, find_audience(order.audience).size().number if order.audience else len(list(order.entries)))
    job = place_job(order, client=key.client, source=f"API: {key.client}")
    return {"id": job.public_id, "status": job.status}


def _steer(request: HttpRequest, job_id: str, verb: Callable[[JobQuerySet], int]) -> dict[str, Any]:
    """The job after that verb. Raises `Refusal`, 409, where the verb is not for a job that stands like this one."""
    key = caller_of(request)
    check_scope(key, CANCEL)

    def move(job: MessageJob) -> dict[str, Any]:
        if not verb(MessageJob.objects.filter(pk=job.pk)):
            raise Refusal(409, f"It is {_find(key, job_id).status}: that can't be done with it.")
        return _shown_in_full(_find(key, job_id))

    answer: dict[str, Any] = once(request, key, lambda: _find(key, job_id), move)
    return answer


def _jobs(key: ApiKey) -> QuerySet[MessageJob]:
    home = MessageJob.objects.using(databases.db_for_write(MessageJob))
    return home.filter(client=key.client).select_related("content")


def _find(key: ApiKey, job_id: str) -> MessageJob:
    job = _jobs(key).filter(public_id=id_of(job_id)).first()
    if job is None:
        raise Refusal(404, "Not found.")
    return job


def _shown(job: MessageJob) -> dict[str, Any]:
    return {
        "id": job.public_id,
        "status": job.status,
        "reason": job.reason,
        "stream": job.stream,
        "priority": job.priority,
        "subject": job.subject,
        "from": job.from_email,
        "audience": job.audience or None,
        "queued_at": job.created_at,
        "send_at": job.send_at,
        "expires_at": job.expires_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "recipients": job.recipient_count,
        "messages": job.message_count,
        "duplicates": job.duplicate_count,
        "malformed": job.malformed_count,
    }


def _shown_in_full(job: MessageJob) -> dict[str, Any]:
    progress = {share.status: share.number for share in progress_of(job)}
    return {**_shown(job), "progress": progress, "malformed_recipients": job.problems[:SHOWN_PROBLEMS]}
