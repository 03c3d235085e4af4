"""Pictures of jobs under way."""

from __future__ import annotations

from pathlib import Path

from loracomp.app.jobs import Jobs
from loracomp.app.refusals import NotFoundError


class Previews:
    """Previews by job.

    Args:
        jobs: The queue.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def path(self, id_: str, user: str) -> Path:
        """The preview of a user's job; raises :class:`NotFoundError` where there is none now."""
        found = self._jobs.get(id_, user).preview
        if found is None:
            raise NotFoundError("preview")
        return found
