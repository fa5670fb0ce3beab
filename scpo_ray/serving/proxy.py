"""In front of the replicas: one that dies under a request makes a 503 with Retry-After, and heads are bounded.

Ray Serve's proxies load this where the cluster is started with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=scpo_ray.serving.proxy:middlewares
"""

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scpo_ray.serving import heads

ROUTING_HEADER = b"serve_multiplexed_model_id"
_MAX_NAMES, _MAX_LENGTH = 1024, 200


class Refuse:
    """ASGI middleware: whoever got no answer is told when to ask again. Scoring changes nothing, so asking again is safe.

    The router remembers every model that a caller names, before anybody has looked at a token: names that are no plain
    text are dropped, and after a thousand different ones new names are not passed on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._names: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; answer where nobody did."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._app(scope | {"headers": self._headers(scope)}, receive, noted)
        if not started:
            error = "the replica died before it answered; try again"
            await JSONResponse({"error": error}, status_code=503, headers={"Retry-After": "1"})(scope, receive, send)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Without routing names that would cost more than they help."""
        found = []
        for name, value in scope["headers"]:
            if name.lower().replace(b"-", b"_") == ROUTING_HEADER:
                if len(value) > _MAX_LENGTH or not value.isascii():
                    continue
                if value not in self._names and len(self._names) >= _MAX_NAMES:
                    continue
                self._names.add(value)
            found.append((name, value))
        return found


def middlewares() -> list[Middleware]:
    """For Ray Serve's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`: called in a proxy before its server starts."""
    heads.bound()
    return [Middleware(Refuse)]
