"""A job on its way, as a person reads it."""

from __future__ import annotations

import base64

from loracomp.app.job import Job
from loracomp.app.ui.markup import Markup, button, join, node, notice

WORDS = {
    "queued": "waiting",
    "running": "running",
    "done": "done",
    "failed": "failed",
    "canceled": "canceled",
    "interrupted": "stopped",
}


def bar(step: int, steps: int, label: str) -> Markup:
    """A progress bar; steps 0 is one that does not know its end."""
    share = min(100, round(100 * step / steps)) if steps else 0
    return node(
        "div", node("span", style=f"width:{share}%"), cls="lc-bar", role="progressbar", aria_label=label,
        aria_valuemin=0, aria_valuemax=100, aria_valuenow=share,
    )  # fmt: skip


def sentence(job: Job) -> str:
    """Where a job stands, in a line."""
    if job.state == "queued":
        if not job.position:
            return "next in the queue"
        return f"waiting for {job.position} other job{'s' if job.position > 1 else ''}"
    if job.state == "failed":
        return job.error or "failed"
    if job.state != "running":
        return WORDS[job.state]
    parts = [f"step {job.step} of {job.steps}"] if job.steps else ["starting"]
    parts += [job.message] if job.message else []
    parts += [f"{clock(job.eta_s)} left"] if job.eta_s is not None else []
    return ", ".join(parts)


def view(job: Job) -> Markup:
    """Preview, bar and words of a job that lives; its end in words where it is over without a picture."""
    if job.live:
        words = node("p", f"{sentence(job)[:1].upper()}{sentence(job)[1:]}", cls="lc-progress", role="status")
        return node(
            "div",
            _preview(job),
            bar(job.step, job.steps, job.title),
            words,
            cls="lc-stage",
            data_state=job.state,
        )
    kind = {"failed": "error", "done": "good"}.get(job.state, "info")
    text = {"canceled": "Canceled; nothing was kept.", "interrupted": "Stopped; its state is kept."}
    return notice(text.get(job.state, sentence(job)), kind)


def _preview(job: Job) -> Markup | None:
    """The job's picture so far; it may be replaced or removed while it is read."""
    if job.preview is None:
        return None
    try:
        data = job.preview.read_bytes()
    except OSError:
        return None
    source = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    image = node("img", src=source, alt="The image as it comes about")
    return node("figure", image, cls="lc-figure")


def clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:03:04."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def actions(job: Job) -> Markup:
    """What can be done with a job in the list."""
    named = {"cls": "lc-small", "data_id": job.id}
    out = []
    if job.live and job.kind in ("train", "mark"):
        out.append(button("Stop", "stop", aria_label=f"Stop {job.title} and keep its state", **named))
    if job.live:
        out.append(button("Cancel", "cancel", aria_label=f"Cancel {job.title}", **named))
    if job.state == "interrupted":
        out.append(button("Resume", "resume", aria_label=f"Go on with {job.title}", **named))
    return node("div", join(out), cls="lc-row")
