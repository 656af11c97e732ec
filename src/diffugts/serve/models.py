"""What the server answers, as JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pydantic import BaseModel, Field

from diffugts.serve.jobs import Job, Jobs, Status


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="one sentence")


class Health(BaseModel):
    """That the server is there."""

    status: str
    version: str
    waiting: int = Field(description="jobs in the queue")
    token: bool = Field(description="whether requests need one")


class Understood(BaseModel):
    """How a prompt is understood; `error` where it is not."""

    text: str
    anatomy: str | None = None
    finding: str | None = None
    negated: bool = False
    error: str | None = None


class Prompts(BaseModel):
    """Prompts as understood, and what the lexicon knows."""

    prompts: list[Understood]
    anatomies: list[str]
    findings: list[str]


class Answer(BaseModel):
    """What was found for one prompt."""

    folder: str = Field(description="of its files, in the zip")
    volume_ml: float
    lesions: int
    score: float = Field(description="whether the scan holds the finding at all, 0 to 1")


class JobState(BaseModel):
    """A job as it stands."""

    id: str
    status: Status
    position: int | None = Field(None, description="jobs before it, while it is queued")
    stage: str | None = Field(None, description="what is being done")
    progress: float | None = Field(None, description="how much of the stage is done, 0 to 1")
    prompts: list[str]
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    expires: datetime | None = Field(None, description="when its files go")
    error: str | None = Field(None, description="one sentence, where it failed")
    warnings: list[str] = []
    results: dict[str, Answer] | None = Field(None, description="by prompt, once it is done")
    links: dict[str, str] = Field({}, description="paths on this server: results, viewer, report")

    @classmethod
    def of(cls, job: Job, jobs: Jobs) -> JobState:
        """A job of the queue, for a client."""
        links: dict[str, str] = {}
        if job.status == "done":
            own = f"/v1/jobs/{job.id}"
            links = {
                "results": f"{own}/results.zip",
                "viewer": f"{own}/view/",
                "report": f"{own}/view/case/0/report.html",
            }
        return cls(
            id=job.id,
            status=job.status,
            position=jobs.position(job),
            stage=job.stage,
            progress=job.progress,
            prompts=list(job.prompts),
            created=_when(job.created),
            started=None if job.started is None else _when(job.started),
            ended=None if job.ended is None else _when(job.ended),
            expires=None if job.ended is None else _when(job.ended + jobs.limits.keep_s),
            error=job.error,
            warnings=list(job.warnings),
            results=_answers(job.results),
            links=links,
        )


def _answers(results: Any) -> dict[str, Answer] | None:
    return None if results is None else {text: Answer(**found) for text, found in results.items()}


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
