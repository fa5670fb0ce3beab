"""In front of the replicas: where none answers, or not in time, there is a 503 with Retry-After, and heads are bounded.

Ray Serve's proxies load this where the cluster is started with

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=scpo_ray.serving.proxy:middlewares
"""

from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scpo_ray.serving import heads

ROUTING_HEADER = b"serve_multiplexed_model_id"
_READ_BY_RAY = (ROUTING_HEADER, b"x_request_id", b"x_session_id", b"traceparent", b"tracestate")
_FOR_OPERATORS = (b"x_request_timeout_seconds", b"x_request_disconnect_disabled")
"""Would have Ray Serve's proxy give up sooner or never, whoever asks."""
_TIMEOUT, _DEADLINE = b"x-request-timeout-seconds", b"x_deadline_s"
TIMEOUT_VARIABLE = "SCPO_SERVE_REQUEST_TIMEOUT_S"
_DEFAULT_TIMEOUT_S, _GRACE_S = 90.0, 2.0
"""Above a service's own `deadline_s`; and what a replica has beyond a caller's deadline to say so itself, with the reason."""
_MAX_NAMES, _MAX_LENGTH = 1024, 200
_ERRORS = {
    408: (503, "not answered in time, no replica is there or all are busy; try again"),
    429: (429, "busy: too many requests wait; try again"),
    503: (503, "no replica answered, it died or is not there yet; try again"),
}
"""Of Ray Serve's proxy -> what is answered instead."""


class Refuse:
    """ASGI middleware: whoever got no answer is told when to ask again. Scoring changes nothing, so asking again is safe.

    Ray Serve's proxy reads some headers as UTF-8 and fails on others: such values are dropped where they are no plain text or
    long. Its router remembers every model that a caller names, before anybody has looked at a token: a name is passed on once a
    question that named it was answered, and a thousand at most. Nobody serves web sockets.

    While there is no replica nobody looks at deadlines, so the proxy is told of them here: a request is answered within
    `SCPO_SERVE_REQUEST_TIMEOUT_S` seconds, or two after what its `X-Deadline-S` asks for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._timeout_s = heads.seconds_of(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT_S)
        self._names: set[bytes] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; answer where nobody did."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 503
        started = False
        headers, name = self._headers(scope)

        async def noted(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start" and message["status"] == 200 and scope["method"] == "POST":
                self._learn(name)
            if message["type"] == "http.response.start" and _is_of_the_proxy(message):
                status = message["status"]
            elif message["type"] == "http.response.start" or started:
                started = True
                await send(message)

        await self._app(scope | {"headers": headers}, receive, noted)
        if not started:
            status, error = _ERRORS[status]
            answer = JSONResponse({"error": error}, status_code=status, headers={"Retry-After": "1"})
            await answer(scope, receive, send)

    def _headers(self, scope: Scope) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """Those that do not cost more than they help, and how long it may take; the model that is named and not known yet."""
        found, unknown, timeout_s = [], None, self._timeout_s
        for name, value in scope["headers"]:
            known = name.lower().replace(b"-", b"_")
            if known in _FOR_OPERATORS:
                continue
            if known in _READ_BY_RAY and (len(value) > _MAX_LENGTH or not value.isascii()):
                continue
            if known == ROUTING_HEADER and value not in self._names:
                unknown = value
                continue
            if known == _DEADLINE:
                asked_s = heads.positive(value)  # else the replica refuses
                timeout_s = timeout_s if asked_s is None else min(timeout_s, asked_s + _GRACE_S)
            found.append((name, value))
        found.append((_TIMEOUT, b"%f" % timeout_s))
        return found, unknown

    def _learn(self, name: bytes | None) -> None:
        if name is not None and len(self._names) < _MAX_NAMES:
            self._names.add(name)


def _is_of_the_proxy(start: Message) -> bool:
    """Whether Ray Serve's proxy refuses by itself, in plain text: too many wait, nobody is there, or it took too long."""
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    return start["status"] in _ERRORS and not headers.get(b"content-type", b"").startswith(b"application/json")


def middlewares() -> list[Middleware]:
    """For Ray Serve's `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`: called in a proxy before its server starts.

    Raises:
        ConfigError: a limit that the environment names is no number above 0.
    """
    heads.seconds_of(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT_S)
    heads.bound()
    return [Middleware(Refuse)]
