"""Who may ask: tokens, sessions, and which hosts and origins a request may name."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections import defaultdict, deque
from ipaddress import ip_address
from urllib.parse import urlsplit

from loracomp.app.settings import LOCAL, Settings

COOKIE = "loracomp_session"
_ATTEMPTS, _WINDOW_S = 10, 60.0
_SAFE = ("GET", "HEAD", "OPTIONS")


class Access:
    """Decides about requests; knows nothing of HTTP beyond its header fields.

    Args:
        settings: Address and tokens.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tokens = dict(settings.tokens)
        self._failed: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether nobody has to sign in: only this machine reaches the app, and no token was given."""
        return not self._tokens

    def user(self, authorization: str = "", cookie: str = "") -> str | None:
        """The user behind a request; None for nobody.

        Args:
            authorization: The header of this name.
            cookie: Value of the cookie :data:`COOKIE`.
        """
        if self.open:
            return LOCAL
        kind, _, secret = authorization.partition(" ")
        if kind.lower() == "bearer":
            return self.owner_of(secret.strip())
        name, _, _ = cookie.rpartition(":")
        known = self._tokens.get(name)
        if known and hmac.compare_digest(self.session(name).encode(), cookie.encode()):
            return name
        return None

    def owner_of(self, secret: str) -> str | None:
        """The user of a token; None for none. Takes as long for a wrong one as for a right one."""
        found = None
        for name, known in self._tokens.items():
            if hmac.compare_digest(known.encode(), secret.encode()):
                found = name
        return found

    def session(self, user: str) -> str:
        """The cookie of a user; it holds until the user's token is changed."""
        secret = self._tokens[user].encode()
        return f"{user}:{hmac.new(secret, f'loracomp session {user}'.encode(), hashlib.sha256).hexdigest()}"

    def slowed(self, client: str) -> bool:
        """Whether an address has guessed wrongly too often in the last minute."""
        with self._lock:
            tries = self._failed[client]
            while tries and time.monotonic() - tries[0] > _WINDOW_S:
                tries.popleft()
            if not tries:
                del self._failed[client]
            return len(tries) >= _ATTEMPTS

    def failed(self, client: str) -> None:
        """Counts a wrong guess."""
        with self._lock:
            self._failed[client].append(time.monotonic())

    def host_allowed(self, host: str) -> bool:
        """Whether a request may name this host: without tokens, only names of this machine.

        A page elsewhere can have its own name point here (DNS rebinding); it cannot choose these names.
        """
        if not self.open:
            return True
        name = urlsplit(f"//{host}").hostname or ""
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return name == "localhost"

    def origin_allowed(self, method: str, host: str, origin: str | None, site: str, mode: str) -> bool:
        """Whether a request may come from a page of this origin: only from the app's own.

        Args:
            method: ``GET``, ``POST``, …
            host: The header ``Host``.
            origin: The header ``Origin``; None where there is none.
            site: The header ``Sec-Fetch-Site``.
            mode: The header ``Sec-Fetch-Mode``.
        """
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return False
        if site in ("cross-site", "same-site"):
            return method in _SAFE and mode == "navigate"
        return True
