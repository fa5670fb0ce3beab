"""In front of the replicas: a replica that dies under a request makes a 503 with Retry-After, not a bare 500.

Ray Serve's proxies load this where the cluster is started with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=scpo_ray.serving.proxy:middlewares
"""

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Refuse:
    """ASGI middleware: whoever got no answer is told when to ask again. Scoring changes nothing, so asking again is safe."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; answer where nobody did."""
        started = scope["type"] != "http"

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        await self._app(scope, receive, noted)
        if not started:
            error = "the replica died before it answered; try again"
            await JSONResponse({"error": error}, status_code=503, headers={"Retry-After": "1"})(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For Ray Serve's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` or `HTTPOptions.middlewares`."""
    return [Middleware(Refuse)]
