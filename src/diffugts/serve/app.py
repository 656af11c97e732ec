"""The application: routes under /v1, and the page at /."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field, StringConstraints
from starlette.routing import Match

from diffugts._version import __version__
from diffugts.errors import DiffuGTSError, InputError, PromptError
from diffugts.prompts import MAX_CHARACTERS, anatomies, findings, parse, parse_all
from diffugts.serve.address import LOOPBACK
from diffugts.serve.guard import COOKIE, HEADER, Guard, session_of
from diffugts.serve.jobs import Job, Jobs
from diffugts.serve.models import Health, JobState, Problem, Prompts, Understood
from diffugts.serve.uploads import store

STATIC = Path(__file__).with_name("static")
PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
MAX_PROMPTS = 16

SANDBOX = "sandbox allow-scripts allow-popups; frame-ancestors 'none'"
"""For the report: it is made from what clients sent, so it runs apart from the server's own pages."""

Text = Annotated[str, StringConstraints(max_length=4 * MAX_CHARACTERS)]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "a request that cannot be read, or another host name",
        401: "no token, or another one",
        403: f"no {HEADER} header, or a page of another site",
        404: "no such job, or nothing of that kind there",
        409: "the job is not done",
        413: "too large",
        422: "something that cannot be used; the sentence says what",
        503: "the queue is full",
    }.items()
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of refusals; a wrong host or token is always among them."""
    return {status: PROBLEMS[status] for status in (400, 401, *statuses)}


def create_app(
    jobs: Jobs,
    model: str = "compact",
    device: str = "auto",
    token: str | None = None,
    hosts: tuple[str, ...] | None = LOOPBACK,
) -> FastAPI:
    """The application around a queue; it starts and ends with it.

    Args:
        jobs: not yet started.
        model, device: as for `diffugts segment`.
        token, hosts: as for `Guard`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        jobs.start()
        try:
            yield
        finally:
            jobs.close()

    app = FastAPI(
        title="DiffuGTS",
        version=__version__,
        description="Zero-shot tumour segmentation from a text prompt. For research only; not a medical device.",
        lifespan=lifespan,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page comes from elsewhere
        redoc_url=None,
        # Newer releases of FastAPI send traces wherever a variable of the environment says; others ignore this.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.jobs, app.state.token = jobs, token
    app.state.base = (f"--model={model}", f"--device={device}")
    app.include_router(router)
    app.add_middleware(Guard, jobs=jobs, token=token, hosts=hosts)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(DiffuGTSError, _unusable)
    app.add_exception_handler(405, _not_allowed)
    for path, name in PAGE.items():
        app.add_api_route(path, _static(name), include_in_schema=False)
    return app


router = APIRouter(prefix="/v1")


def get_jobs(request: Request) -> Jobs:
    """The server's queue."""
    jobs: Jobs = request.app.state.jobs
    return jobs


def get_job(job_id: str, jobs: Annotated[Jobs, Depends(get_jobs)]) -> Job:
    """The job that the path names. Raises a 404."""
    job = jobs.get(job_id)
    if job is None:
        raise HTTPException(404, "there is no such job; it may have expired")
    return job


def get_result(job: Annotated[Job, Depends(get_job)]) -> Job:
    """A job that is done. Raises a 404 or 409."""
    if job.status != "done":
        raise HTTPException(409, f"the job is {job.status}, so it has no results")
    return job


Queue = Annotated[Jobs, Depends(get_jobs)]
OneJob = Annotated[Job, Depends(get_job)]
DoneJob = Annotated[Job, Depends(get_result)]


class JobForm(BaseModel):
    """What a job is to do, as form fields."""

    scan: UploadFile = Field(description="a .nii, .nii.gz, .nrrd or .mha file, or a .zip of one DICOM series")
    prompt: list[Text] = Field(min_length=1, max_length=MAX_PROMPTS, description="what to find; repeatable")
    region: UploadFile | None = Field(None, description="rough mask on the scan's grid, instead of attention's")
    modality: Literal["auto", "ct", "mr"] = "auto"
    seed: int = Field(0, ge=0, lt=2**31)
    seeds: int = Field(1, ge=1, le=16, description="repaint so many times; the spread is the uncertainty")
    steps: int | None = Field(None, ge=1, le=1000, description="diffusion steps; the model's own where not given")
    series: Annotated[str, StringConstraints(pattern=r"^[0-9.]{1,64}$")] | None = Field(
        None, description="SeriesInstanceUID, where a zip holds several"
    )
    dicom_seg: bool = Field(False, description="also write DICOM SEG; for DICOM scans")
    rtstruct: bool = Field(False, description="also write DICOM RTSTRUCT; for DICOM scans")

    def words(self, scan: Path, region: Path | None, folder: Path) -> list[str]:
        """The command line that does the same."""
        words = ["segment", str(scan), f"--output={folder}", "--report", f"--modality={self.modality}"]
        words += [f"--prompt={text}" for text in self.prompt]
        words += [f"--seed={self.seed}", f"--seeds={self.seeds}"]
        words += [] if self.steps is None else [f"--steps={self.steps}"]
        words += [] if self.series is None else [f"--series={self.series}"]
        words += [] if region is None else [f"--region={region}"]
        return words + ["--dicom-seg"] * self.dicom_seg + ["--rtstruct"] * self.rtstruct


@router.get("/health", responses={400: PROBLEMS[400]})
def health(jobs: Queue, request: Request) -> Health:
    """That the server is there; needs no token."""
    return Health(status="ok", version=__version__, waiting=jobs.waiting, token=request.app.state.token is not None)


@router.post("/session", status_code=204, responses=problems(403))
def session(request: Request) -> Response:
    """A cookie that stands for the token, so that a browser can follow links."""
    answer = Response(status_code=204)
    if request.app.state.token is not None:
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session_of(request.app.state.token), httponly=True, samesite="strict", secure=secure)
    return answer


@router.get("/prompts", responses=problems(422))
def prompts(text: Annotated[list[Text], Query(max_length=MAX_PROMPTS)] = []) -> Prompts:  # noqa: B006
    """How prompts are understood."""
    return Prompts(prompts=[_understood(one) for one in text], anatomies=list(anatomies()), findings=list(findings()))


@router.get("/jobs", responses=problems())
def list_jobs(jobs: Queue) -> list[JobState]:
    """Every job that the server still knows, the oldest first."""
    return [JobState.of(job, jobs) for job in jobs.all()]


@router.post("/jobs", status_code=202, responses=problems(403, 413, 422, 503))
def submit(form: Annotated[JobForm, Form(media_type="multipart/form-data")], jobs: Queue, request: Request) -> JobState:
    """Upload a scan and queue it."""
    understood = parse_all(form.prompt)
    job = jobs.make()
    try:
        scan = store(form.scan.file, form.scan.filename, job.folder, "scan", jobs.limits)
        region = None
        if form.region is not None:
            region = store(form.region.file, form.region.filename, job.folder, "region", jobs.limits, zipped=False)
        if (form.dicom_seg or form.rtstruct) and not scan.is_dir():
            raise InputError("DICOM SEG and RTSTRUCT refer to a DICOM series; send a zip of one, or leave them out")
    except BaseException:
        jobs.discard(job)
        raise
    job.prompts = tuple(prompt.text for prompt in understood)
    job.words = (*form.words(scan, region, job.folder), *request.app.state.base)
    jobs.queue(job)
    return JobState.of(job, jobs)


@router.get("/jobs/{job_id}", responses=problems(404))
def state(job: OneJob, jobs: Queue) -> JobState:
    """How a job stands."""
    return JobState.of(job, jobs)


@router.delete("/jobs/{job_id}", responses=problems(403, 404))
def cancel(job: OneJob, jobs: Queue) -> JobState:
    """Stop a job that has not ended, and remove all of its files."""
    jobs.cancel(job)
    return JobState.of(job, jobs)


@router.get(
    "/jobs/{job_id}/results.zip",
    response_class=FileResponse,
    responses={200: {"content": {"application/zip": {}}, "description": "every file"}, **problems(404, 409)},
)
def results(job: DoneJob) -> FileResponse:
    """Every file of the result."""
    return _file(job.archive, "application/zip", {}, f"diffugts-{job.id[:8]}.zip")


@router.get("/jobs/{job_id}/view/{path:path}", include_in_schema=False)
def view(job: DoneJob, path: str) -> Response:
    """The viewer of the result, and the report."""
    from diffugts.report.save import REPORT
    from diffugts.view.site import Site

    if job.site is None:
        job.site = Site.of([job.case])
    reply = job.site.get(path)
    if reply is None:
        raise HTTPException(404, "there is nothing of that name")
    headers = {**reply.headers, **({"Content-Security-Policy": SANDBOX} if path.endswith(REPORT) else {})}
    if isinstance(reply.body, bytes):
        return Response(reply.body, media_type=reply.kind, headers=headers)
    return _file(reply.body, reply.kind, headers)


def _file(path: Path, kind: str, headers: dict[str, str], name: str | None = None) -> FileResponse:
    if not path.is_file():  # deleted between two looks
        raise HTTPException(404, "the file is gone")
    return FileResponse(path, media_type=kind, headers=headers, filename=name)


def _understood(text: str) -> Understood:
    try:
        found = parse(text)
    except PromptError as error:
        return Understood(text=text, error=str(error))
    return Understood(text=text, anatomy=found.anatomy, finding=found.finding, negated=found.negated)


def _static(name: str) -> Any:
    def page() -> FileResponse:
        return FileResponse(STATIC / name)

    return page


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What a request has wrong, as one sentence; never with the value, which may be a file."""
    assert isinstance(error, RequestValidationError)
    parts = [f"{'.'.join(str(p) for p in e['loc'][1:]) or e['loc'][0]}: {e['msg']}" for e in error.errors()]
    return JSONResponse({"detail": "; ".join(parts)}, 422)


def _not_allowed(request: Request, error: Exception) -> JSONResponse:
    """405 that names the methods of every route with this path, where Starlette names those of the first."""
    routes = [route for route in (*router.routes, *request.app.routes) if getattr(route, "methods", None)]
    fits = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    allowed = sorted({method for route in fits for method in route.methods})
    return JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(allowed)})


def _unusable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)
