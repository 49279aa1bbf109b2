"""Submit, list, look at and cancel jobs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from server.bodies import SpecRoute, also_yaml
from server.deps import ID_PATTERN, Service, TheJob, TheService
from server.problems import Refusal, documented
from server.views import DryRun, JobPage, JobView, ProfileDryRun
from store import admission, devices, jobs
from store.queue import GROWTH_QUEUE, profile_queue
from store.spec import JobSpec, ProfileSpec
from store.views import Job, JobKind, JobState, Submission

router = APIRouter(prefix="/v1", tags=["jobs"])
specs = APIRouter(prefix="/v1", tags=["jobs"], route_class=SpecRoute)

Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", pattern=r"^[\x21-\x7e]{1,200}$", description="the same key with the same spec gives the same job"),
]
DryRunFlag = Annotated[bool, Query(description="check everything, create nothing")]


def _answers(dry_run: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    location = {"Location": {"schema": {"type": "string"}, "description": "the job"}}
    return {
        200: {"description": "Dry run: what would be started", "model": dry_run},
        202: {"description": "Accepted", "headers": location},
        **documented(400, 403, 409, 413, 415, 422),
    }


@specs.post(
    "/jobs",
    status_code=202,
    response_model=JobView,
    responses=_answers(DryRun),
    openapi_extra=also_yaml("JobSpec"),
)
async def submit_job(spec: JobSpec, service: TheService, dry_run: DryRunFlag = False, key: Key = None) -> Response:
    """Submit a growth job.  What is wrong with the spec is named field by field; a dry run says the same and creates nothing."""
    if dry_run:
        return _answer(DryRun.of(spec.name, spec.budget.limit, await run_in_threadpool(_admitted, spec, service)), 200)

    def prepare() -> Submission:
        document = _admitted(spec, service).spec.model_dump(mode="json")
        return Submission("growth", spec.name, document, GROWTH_QUEUE, service.settings.max_attempts, key)

    if spec.data.root is None:
        return _accepted(await service.submissions.submit(prepare))
    ready = await run_in_threadpool(prepare)  # to look through a folder may take seconds: the others don't wait for that
    return _accepted(await service.submissions.submit(lambda: ready))


@specs.post(
    "/profiles",
    status_code=202,
    response_model=JobView,
    responses=_answers(ProfileDryRun),
    openapi_extra=also_yaml("ProfileSpec"),
)
def submit_profile(spec: ProfileSpec, service: TheService, dry_run: DryRunFlag = False, key: Key = None) -> Response:
    """Submit a job that measures a device for every layer shape that growing a network can meet."""
    admitted = admission.admit_profile(spec, service.db)
    if dry_run:
        return _answer(ProfileDryRun.of(spec.name, spec.device, admitted), 200)
    document, queue = spec.model_dump(mode="json"), profile_queue(spec.device)
    job = jobs.submit(service.db, "profile", spec.name, document, queue, service.settings.max_attempts, key)
    return _accepted(job, _waits_for(job, service))


@router.get("/jobs", responses=documented(422))
def list_jobs(
    service: TheService,
    state: JobState | None = None,
    kind: JobKind | None = None,
    limit: Annotated[int, Query(ge=1, le=200, description="jobs per page")] = 50,
    cursor: Annotated[str | None, Query(pattern=ID_PATTERN, description="`next` of the page before")] = None,
) -> JobPage:
    """Jobs, newest first."""
    last_event = jobs.last_seq(service.db)  # read first: an event that comes in between is then seen twice, never missed
    found = jobs.find(service.db, state=state, kind=kind, before=cursor, limit=limit + 1)
    page = found[:limit]
    return JobPage(jobs=[JobView.of(job) for job in page], next=page[-1].id if len(found) > limit else None, last_event=last_event)


@router.get("/jobs/{job_id}", responses=documented(404, 422))
def get_job(job: TheJob, service: TheService) -> JobView:
    """A job, with its progress."""
    return JobView.of(job, _waits_for(job, service))


@router.post("/jobs/{job_id}/cancel", status_code=202, responses=documented(403, 404, 409, 422))
def cancel_job(job: TheJob, service: TheService) -> JobView:
    """Cancel a job.  A queued one is cancelled at once; a running one shows ``cancelled`` when no process of it is alive."""
    try:
        return JobView.of(jobs.cancel(service.db, job.id))
    except jobs.JobIsTerminal as error:
        raise Refusal(409, str(error)) from error


def _admitted(spec: JobSpec, service: Service) -> admission.Admission:
    return admission.admit(spec, service.db, service.settings, service.tables.load)


def _waits_for(job: Job, service: Service) -> str | None:
    """A queued profile waits for a worker of its device, and of no other."""
    if job.state != "queued" or job.kind != "profile":
        return None
    return devices.device(service.db, job.spec["device"]).waits_for


def _accepted(job: Job, waits_for: str | None = None) -> Response:
    return _answer(JobView.of(job, waits_for), 202, {"Location": f"/v1/jobs/{job.id}"})


def _answer(view: JobView | DryRun | ProfileDryRun, status: int, headers: dict[str, str] | None = None) -> Response:
    """Written out here, in the thread of the request: FastAPI would take another one to check the view against its own model."""
    return Response(view.model_dump_json(), status, headers, media_type="application/json")
