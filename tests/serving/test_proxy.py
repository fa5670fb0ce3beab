"""In front of the replicas: whoever got no answer is told when to ask again, and routing names are bounded."""

import asyncio
import json
from collections.abc import Sequence

import pytest
from ray.serve._private.constants import SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER
from ray.serve._private.http_util import parse_request_timeout_header
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scpo_ray.errors import ConfigError
from scpo_ray.serving import proxy
from scpo_ray.serving.proxy import Refuse

HEADER = b"serve_multiplexed_model_id"
SPELLINGS = (HEADER, b"SERVE_MULTIPLEXED_MODEL_ID", b"serve-multiplexed-model-id", b"Serve-Multiplexed_Model-Id")


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """A replica that died under its request."""


def asked(app: ASGIApp, headers: Sequence[tuple[bytes, bytes]] = (), *, method: str = "POST") -> Response:
    """One request's answer; it has to be a single one."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app({"type": "http", "method": method, "headers": list(headers)}, receive, send))
    start, *rest = messages
    assert start["type"] == "http.response.start"
    assert {message["type"] for message in rest} == {"http.response.body"}
    found = Response(b"".join(message["body"] for message in rest), start["status"])
    found.raw_headers = start["headers"]
    return found


@pytest.mark.parametrize(
    ("unanswered", "status", "error"),
    [
        (PlainTextResponse("Request dropped due to backpressure", 429), 429, "busy: too many requests wait; try again"),
        (PlainTextResponse("Deployment is unavailable.", 503), 503, "no replica answered, it died or is not there yet"),
        (Response(status_code=503), 503, "no replica answered, it died or is not there yet"),
        (nobody, 503, "no replica answered, it died or is not there yet"),
        (PlainTextResponse("Request 1 timed out after 3s.", 408), 503, "not answered in time, no replica is there"),
    ],
)
def test_where_no_replica_answered_the_refusal_is_json_and_says_when_to_come_back(unanswered, status, error):
    answer = asked(Refuse(unanswered))
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["content-type"] == "application/json"
    (told,) = json.loads(answer.body).values()
    assert error in told
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"error": "busy: 9 responses wait"}, 429, headers={"Retry-After": "7", "X-Own": "kept"}),
        JSONResponse({"error": "not answered within 60 s"}, 503, headers={"Retry-After": "3"}),
        Response(b'{"error": "late"}', 503, media_type="application/json; charset=utf-8"),
        JSONResponse({"error": "body: 3 bytes came in 10 s and no end; send it faster"}, 408),
        PlainTextResponse("scpo_requests_total 3.0"),
        PlainTextResponse("gone", 404),
        PlainTextResponse("Internal Server Error", 500),
    ],
)
def test_what_a_replica_answered_itself_passes_untouched(answer):
    found = asked(Refuse(answer))
    assert (found.status_code, found.raw_headers, found.body) == (answer.status_code, answer.raw_headers, answer.body)


class Router:
    """What lies behind the middleware: notes the headers that come through to it."""

    def __init__(self, status: int = 200) -> None:
        self.refuse, self.status = Refuse(self), status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = scope["headers"]
        await PlainTextResponse("scored", self.status)(scope, receive, send)

    def sees(self, *headers: tuple[bytes, bytes], method: str = "POST") -> list[tuple[bytes, bytes]]:
        """Of a request, which is answered in any case; without the time that Ray Serve's proxy gives it."""
        assert asked(self.refuse, headers, method=method).body == b"scored"
        *found, (name, value) = self.headers
        assert name == SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER.encode()
        self.timeout_s = parse_request_timeout_header({name: value}, None)
        return found

    def knows(self, name: bytes, *, header: bytes = HEADER) -> bool:
        """Whether a request for this model is routed by its name."""
        return self.sees((header, name)) == [(header, name)]


@pytest.mark.parametrize("spelling", [*SPELLINGS, b"X-Request-Id", b"x_session_id", b"traceparent"])
@pytest.mark.parametrize("name", [b"x" * 201, b"\xff", "Côte d'Ivoire".encode()])
def test_a_routing_name_that_is_too_long_or_no_plain_text_is_dropped_alone(spelling, name):
    others = [(b"host", b"x"), (b"authorization", b"\xff" * 300), (b"serve_model_id", b"\xff")]
    assert Router().sees(others[0], (spelling, name), *others[1:]) == others


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_routing_name_is_passed_on_once_a_question_that_named_it_was_answered(spelling):
    for name in (b"United Kingdom", b"x" * 200):
        router = Router()
        assert [router.knows(name, header=spelling) for _ in range(3)] == [False, True, True]


def test_whoever_got_no_answer_makes_no_name_known():
    """Without a token there is 401, or what is public."""
    for router, method in ((Router(401), "POST"), (Router(404), "POST"), (Router(), "GET")):
        for _ in range(2):
            assert router.sees((HEADER, b"Chile"), (b"host", b"x"), method=method) == [(b"host", b"x")]


@pytest.mark.parametrize(
    "name", [b"X-Request-Timeout-Seconds", b"x-request-timeout-seconds", b"x-request-disconnect-disabled"]
)
@pytest.mark.parametrize("value", [b"\xff", b"0.001", b"?1"])
def test_callers_do_not_set_the_proxys_own_limits(name, value):
    assert Router().sees((name, value), (b"host", b"x")) == [(b"host", b"x")]


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [
        (b"3", 5.0),
        (b"0.5", 2.5),
        *((value, 90.0) for value in (b"1e9", b"-1", b"0", b"nan", b"inf", b"soon", b"\xff")),
    ],
)
@pytest.mark.parametrize("name", [b"x-deadline-s", b"X-Deadline-S"])
def test_the_proxy_gives_up_soon_after_the_callers_deadline(name, deadline, seconds):
    router = Router()
    assert router.sees((name, deadline)) == [(name, deadline)]
    assert router.timeout_s == seconds


def test_operators_say_how_long_a_request_may_take(monkeypatch):
    router = Router()
    router.sees()
    assert router.timeout_s == 90.0
    monkeypatch.setenv("SCPO_SERVE_REQUEST_TIMEOUT_S", "7.5")
    router = Router()
    router.sees((b"x-deadline-s", b"30"))
    assert router.timeout_s == 7.5


@pytest.mark.parametrize("variable", ["SCPO_SERVE_REQUEST_TIMEOUT_S", "SCPO_SERVE_HEAD_TIMEOUT_S"])
@pytest.mark.parametrize("value", ["soon", "0", "-3", "nan", "inf", ""])
def test_a_limit_that_means_nothing_stops_the_proxy(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable}: '{value}' is no number of seconds above 0"):
        proxy.middlewares()


def test_web_sockets_are_refused_before_anybody_sees_them():
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("was passed on")

    asyncio.run(Refuse(app)({"type": "websocket", "headers": [(HEADER, b"\xff")]}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_beyond_the_limit_known_names_are_passed_on_and_new_ones_are_not(monkeypatch):
    monkeypatch.setattr(proxy, "_MAX_NAMES", 2)
    router = Router()
    assert not any(router.knows(name) for name in (b"\xff", b"\xfe", b"x" * 201) * 2)  # dropped ones do not count
    for name in (b"Chile", b"Kenya"):
        assert not router.knows(name)
    assert router.knows(b"Chile") and router.knows(b"Chile", header=SPELLINGS[2]) and router.knows(b"Kenya")
    assert not any(router.knows(b"Peru", header=spelling) for spelling in SPELLINGS * 2)
    assert router.knows(b"Chile") and router.knows(b"Kenya", header=SPELLINGS[1])
