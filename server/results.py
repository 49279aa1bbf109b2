"""What a job leaves: rounds, curves, log, report, artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi import Path as PathParameter
from starlette.responses import FileResponse, PlainTextResponse, Response

from server.deps import Service, TheJob, TheService
from server.problems import documented, not_found
from server.views import ArtifactList, ArtifactView, MetricSeries, RoundList, RoundView
from store import jobs
from store.views import Artifact

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["results"])

REPORT = "report.json"
LOG_BYTES = 65_536
MAX_LOG_BYTES = 1_048_576

_LOG_HEADERS = {
    "Wattle-Log-Offset": {"schema": {"type": "integer"}, "description": "offset of the first byte sent"},
    "Wattle-Log-Next": {"schema": {"type": "integer"}, "description": "offset to ask for next"},
    "Wattle-Log-Size": {"schema": {"type": "integer"}, "description": "bytes in the log so far"},
}
_BYTES: dict[str, Any] = {"content": {"*/*": {}}}  # of the media type it was registered with


@router.get("/rounds", responses=documented(404, 422))
def list_rounds(job: TheJob, service: TheService) -> RoundList:
    """The growth rounds of all runs of a job, in the order they were taken."""
    return RoundList(rounds=[RoundView.of(taken) for taken in jobs.rounds(service.db, job.id)])


@router.get("/metrics", responses=documented(404, 422))
def get_metrics(
    job: TheJob,
    service: TheService,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="points per curve; extremes are kept")] = 500,
    run: Annotated[list[str] | None, Query(max_length=200, description="only these runs, such as grown or uniform.1; default: all")] = None,
) -> MetricSeries:
    """The curves of a job, thinned to ``max_points`` each."""
    return MetricSeries.model_validate({"metrics": jobs.metrics(service.db, job.id, max_points, run)})


@router.get(
    "/log",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "headers": _LOG_HEADERS}, **documented(404, 422)},
)
def get_log(
    job: TheJob,
    service: TheService,
    offset: Annotated[int, Query(ge=-(2**53), le=2**53, description="first byte; negative counts from the end")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES, description="most bytes to send")] = LOG_BYTES,
) -> Response:
    """The log of all attempts as text.  To follow it, ask again with ``offset`` set to the ``Wattle-Log-Next`` header."""
    content, start, size = _read(service.settings.data_dir / "logs" / f"{job.id}.log", offset, limit)
    headers = {"Wattle-Log-Offset": str(start), "Wattle-Log-Next": str(start + len(content)), "Wattle-Log-Size": str(size)}
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/report", response_model=dict[str, Any], responses=documented(404, 422))
def get_report(job: TheJob, service: TheService) -> Response:
    """The report of a job that has succeeded: seed, grown network and controls side by side."""
    artifact = _artifact(service, job.id, REPORT)
    if artifact is None:
        raise not_found("report of job", job.id, f"it is written at the end of a growth job; this {job.kind} job is {job.state}")
    return Response(_file(service, artifact).read_bytes(), media_type="application/json")


@router.get("/artifacts", responses=documented(404, 422))
def list_artifacts(job: TheJob, service: TheService) -> ArtifactList:
    """The files a job has left."""
    return ArtifactList(artifacts=[ArtifactView.of(artifact) for artifact in jobs.artifacts(service.db, job.id)])


@router.get(
    "/artifacts/{name}",
    response_class=FileResponse,
    responses={
        200: _BYTES,
        206: {**_BYTES, "description": "The range asked for by the Range header"},
        304: {"description": "If-None-Match names the sha256 of the file"},
        416: {"description": "The file has no such range", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(404, 422),
    },
)
def get_artifact(
    job: TheJob,
    service: TheService,
    name: Annotated[str, PathParameter(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)],
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Download a file.  Ranges are served; the ETag is the file's sha256."""
    artifact = _artifact(service, job.id, name)
    if artifact is None:
        raise not_found("artifact", name, f"GET /v1/jobs/{job.id}/artifacts lists those of this job")
    etag = f'"{artifact.sha256}"'
    if if_none_match is not None and etag in if_none_match:
        return Response(status_code=304, headers={"ETag": etag})
    return FileResponse(_file(service, artifact), media_type=artifact.media_type, filename=name, headers={"ETag": etag})


def _artifact(service: Service, job_id: str, name: str) -> Artifact | None:
    return next((artifact for artifact in jobs.artifacts(service.db, job_id) if artifact.name == name), None)


def _file(service: Service, artifact: Artifact) -> Path:
    try:
        return service.artifacts.path(artifact.sha256)
    except FileNotFoundError as error:
        raise not_found("file of artifact", artifact.name, str(error)) from error


def _read(path: Path, offset: int, limit: int) -> tuple[bytes, int, int]:
    """At most ``limit`` bytes from ``offset``, the offset they start at, and the size of the file; nothing written yet is no error."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = min(size, offset if offset >= 0 else max(0, size + offset))
            file.seek(start)
            return file.read(limit), start, size
    except FileNotFoundError:
        return b"", 0, 0
