"""What a request must pass before anything is parsed: who asks, how much comes, how long it may take."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scpo_ray.config.serving import ServeConfig
from scpo_ray.serving.metrics import Metrics
from scpo_ray.serving.tokens import Tokens

PUBLIC = ("/", "/page.js", "/page.css", "/docs", "/openapi.json", "/healthz", "/readyz", "/docs/oauth2-redirect")
"""Paths that show nothing of models or data: no token is asked for to read them."""
PUBLIC_FILES = "/static-offline-docs/"
DEADLINE = "x-deadline-s"
_MAX_LOGGED, _MAX_LOGGED_PATH = 4096, 200
_GONE = 499
"""Whoever asked has hung up."""
_BODILESS = ("GET", "HEAD", "OPTIONS")
"""Nobody waits for what these might send: whoever has no token cannot hold a place by sending slowly."""
_LOGGER = logging.getLogger("ray.serve")


class Refusal(Exception):
    """An answer that is given before the application sees the request."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.response = JSONResponse({"error": error}, status_code=status, headers=headers)


class Gate:
    """ASGI middleware: tokens, size of bodies, time for bodies, deadlines; counts and times every request.

    Args:
        tokens: None where authentication is off.
        retry_after_s: when whoever was not answered in time may be, seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServeConfig,
        tokens: Tokens | None,
        metrics: Metrics,
        retry_after_s: Callable[[], int] = lambda: 1,
    ) -> None:
        self._retry_after_s = retry_after_s
        self._app, self._config, self._tokens, self._metrics = app, config, tokens, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, texts = time.perf_counter(), 500, b""

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def noted() -> Message:
            nonlocal texts
            message = await receive()
            texts = (texts + message.get("body", b""))[:_MAX_LOGGED]
            return message

        with self._metrics.in_progress.track_inprogress():
            try:
                await self._pass(scope, noted if self._config.log_texts else receive, watched)
            except Refusal as refusal:
                await refusal.response(scope, receive, watched)
            except asyncio.CancelledError:
                status = _GONE
                raise
            finally:
                self._metrics.observe(scope, status, time.perf_counter() - start)
                if status >= 400 and self._config.log_texts:
                    _LOGGER.warning("%r %d: %r", scope["path"][:_MAX_LOGGED_PATH], status, texts)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check_token(scope, headers)
        deadline_s = self._deadline(headers)
        body = b"" if scope["method"] in _BODILESS else await self._body(headers, receive)
        started = False

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(deadline_s):
                await self._app(scope, replay, noted)
        except TimeoutError:
            if started:
                raise
            raise Refusal(
                503,
                f"not answered within {deadline_s:g} s; try again, or ask for less at a time",
                {"Retry-After": str(self._retry_after_s())},
            ) from None

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        is_public = scope["method"] in _BODILESS and (path in PUBLIC or path.startswith(PUBLIC_FILES))
        if self._tokens is None or is_public:
            return
        if not self._tokens.admit(headers.get("authorization")):
            raise Refusal(
                401,
                "Authorization: no known bearer token; send 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": "Bearer"},
            )

    def _deadline(self, headers: Headers) -> float:
        asked = headers.get(DEADLINE)
        if asked is None:
            return self._config.deadline_s
        try:
            seconds = float(asked)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise Refusal(400, f"X-Deadline-S: {asked[:40]!r} is no number of seconds above 0")
        return min(seconds, self._config.deadline_s)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        limit = self._config.max_body_bytes
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._config.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(
                408, f"body: {size} bytes came in {self._config.body_timeout_s:g} s and no end; send it faster"
            ) from None


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, f"body: more than {limit} bytes; send fewer or shorter responses at a time", {"Connection": "close"}
    )
