"""The page where a token is entered."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from loracomp.app.access import COOKIE, Access
from loracomp.app.guard import LOGIN

_YEAR_S = 365 * 86400
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Sign in · loracomp</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh }}
form {{ width: min(22rem, 90vw) }}
h1 {{ font-size: 1.5rem }}
label, input, button {{ display: block; width: 100%; box-sizing: border-box; font: inherit }}
input, button {{ padding: .6rem; margin: .4rem 0 1rem }}
</style></head>
<body><main><form method="post" action="{action}">
<h1>loracomp</h1>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<p role="alert">{said}</p>
<button type="submit">Sign in</button>
<p><small>The token is the one that the app was started with (<code>--token</code>).</small></p>
</form></main></body></html>
"""


def login_routes(access: Access) -> APIRouter:
    """``GET`` and ``POST /login``."""
    router = APIRouter(include_in_schema=False)

    @router.get(LOGIN)
    def page() -> Any:
        return HTMLResponse(_PAGE.format(action=LOGIN, said=""))

    @router.post(LOGIN)
    def enter(request: Request, token: str = Form(default="", max_length=500)) -> Any:
        user = None if access.open else access.owner_of(token)
        if user is None:
            access.failed(request.client.host if request.client else "")
            return HTMLResponse(_PAGE.format(action=LOGIN, said="That is not the token."), 401)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, access.session(user), max_age=_YEAR_S, httponly=True, samesite="lax", secure=secure
        )
        return answer

    return router
