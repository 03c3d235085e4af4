"""The page's scripts and styles from memory: some ninety small files, whose names change with them."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from loracomp.app.guard import Application, Receive, Scope, Send

PREFIX = "/assets/"
_FOREVER = b"public, max-age=31536000, immutable"


class Assets:
    """ASGI middleware that answers for the files of one folder, as they are, without compression.

    On the way to the same machine, packing takes longer than carrying. What is asked for in any other way
    than by a plain GET, and what is not in the folder, is left to the application behind.

    Args:
        inner: That application.
        folder: Files whose names change with their contents.
    """

    def __init__(self, inner: Application, folder: Path) -> None:
        self._inner = inner
        found = folder.iterdir() if folder.is_dir() else ()
        self._files = {path.name: path for path in found if path.is_file()}
        self._held: dict[str, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets the application behind do so."""
        name = scope.get("path", "").removeprefix(PREFIX) if scope.get("method") == "GET" else ""
        partial = any(key == b"range" for key, _ in scope.get("headers", ()))
        body = None if partial or not scope.get("path", "").startswith(PREFIX) else self._read(name)
        if body is None:
            await self._inner(scope, receive, send)
            return
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", _FOREVER),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _read(self, name: str) -> bytes | None:
        """The file's bytes; only names that the folder held at the start are looked for."""
        if name in self._files and name not in self._held:
            try:
                self._held[name] = self._files[name].read_bytes()
            except OSError:
                return None
        return self._held.get(name)
