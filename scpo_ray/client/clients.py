"""What a call says is a generator of requests to send and pauses to make; the two clients differ in how they do both."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Literal, Self, TypedDict, TypeVar, Unpack

import httpx
from pydantic import BaseModel, ValidationError

from scpo_ray.errors import ServiceError
from scpo_ray.serving.schemas import (
    CommunitiesResponse,
    CompareRequest,
    CompareResponse,
    ErrorResponse,
    Question,
    ScoreRequest,
    ScoreResponse,
    clearest,
)

TOKEN_VARIABLE = "SCPO_SERVE_TOKEN"
"""Where the bearer token is taken from when none is given."""

MODEL_HEADER = "serve_multiplexed_model_id"
"""By it Ray Serve finds a replica that has the community's model in memory."""

_BUSY = (429, 503)
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 16.0


class QuestionArguments(TypedDict, total=False):
    """What is asked about, and whom. Either `prompt` or `messages`; `communities` is one name, several, or `all` (the default),
    or a steering vector."""

    prompt: str
    messages: Sequence[Mapping[str, str]]
    communities: str | Sequence[str] | Mapping[str, float]


class ScoreArguments(QuestionArguments, total=False):
    """Either `response` or `responses`."""

    response: str
    responses: Sequence[str]
    scale: Literal["calibrated", "raw"]


class CompareArguments(QuestionArguments):
    """The two responses."""

    response_a: str
    response_b: str


AnswerT = TypeVar("AnswerT", bound=BaseModel)
Reply = httpx.Response | httpx.RequestError | None
Steps = Generator[httpx.Request | float, Reply, AnswerT]
"""Yields a request and takes what came of it, or yields seconds to wait; returns the answer."""


class _Caller:
    """Requests, retries and answers, whatever carries them."""

    _transport: type[httpx.Client] | type[httpx.AsyncClient]

    def __init__(self, url: str, *, token: str | None = None, max_retries: int = 5, timeout_s: float = 60.0) -> None:
        """Connects with the first call.

        Args:
            url: of the service, without `/v1`.
            token: bearer token; unset: the environment's SCPO_SERVE_TOKEN, if there is one.
            max_retries: attempts after the first, of calls that find no connection, or the service busy (429, 503).
            timeout_s: after which no attempt begins, and for how long one may wait for a connection or for the next bytes. A
                Retry-After that goes beyond it ends the call at once.

        Raises:
            ServiceError: the address is none, the token cannot be sent, or the limits leave no time for a call.
        """
        if max_retries < 0 or not timeout_s > 0:
            raise ServiceError(
                f"max_retries is {max_retries} and timeout_s is {timeout_s:g}; give 0 or more retries and more than 0 s"
            )
        self._url = _address(url)
        self._headers = _authorization(token)
        self._max_retries = max_retries
        self._timeout_s = timeout_s
        self._http = self._transport()

    def _score(self, arguments: ScoreArguments) -> Steps[ScoreResponse]:
        return self._call("/v1/score", ScoreResponse, _request(ScoreRequest, arguments))

    def _compare(self, arguments: CompareArguments) -> Steps[CompareResponse]:
        return self._call("/v1/compare", CompareResponse, _request(CompareRequest, arguments))

    def _communities(self) -> Steps[CommunitiesResponse]:
        return self._call("/v1/communities", CommunitiesResponse)

    def _call(self, path: str, answer: type[AnswerT], asked: Question | None = None) -> Steps[AnswerT]:
        address = f"{self._url}{path}"
        method = "GET" if asked is None else "POST"
        headers = self._headers | ({} if asked is None else _routing(asked))
        content = None if asked is None else asked.model_dump_json(exclude_none=True)
        started = time.monotonic()
        for attempt in itertools.count(1):
            left = max(started + self._timeout_s - time.monotonic(), 0.001)
            limits = {"timeout": httpx.Timeout(left).as_dict()}
            reply = yield httpx.Request(method, address, headers=headers, content=content, extensions=limits)
            if isinstance(reply, httpx.Response) and reply.status_code not in _BUSY:
                return _parsed(reply, answer, address)
            wait = _wait(reply, attempt)
            spent = time.monotonic() - started
            if attempt > self._max_retries or spent + wait >= self._timeout_s:
                raise ServiceError(
                    f"{address}: {_trouble(reply)} at attempt {attempt} of {self._max_retries + 1}, after {spent:.1f} s of "
                    f"{self._timeout_s:g} s; check that the service runs there, or raise max_retries or timeout_s"
                )
            yield wait
        raise AssertionError("attempts are counted without end")


class Client(_Caller):
    """Asks the reward service; threads may share one. Close it, or use it in a `with` statement."""

    _transport = httpx.Client
    _http: httpx.Client

    def score(self, **arguments: Unpack[ScoreArguments]) -> ScoreResponse:
        """Rewards of responses.

        Raises:
            ServiceError: the request is refused, here or there, or no answer came in time.
        """
        return self._do(self._score(arguments))

    def compare(self, **arguments: Unpack[CompareArguments]) -> CompareResponse:
        """Who would rather have response A; raises as `score` does."""
        return self._do(self._compare(arguments))

    def communities(self) -> CommunitiesResponse:
        """Everyone who is served; raises as `score` does."""
        return self._do(self._communities())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, steps: Steps[AnswerT]) -> AnswerT:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                return done.value
            reply = self._take(step)

    def _take(self, step: httpx.Request | float) -> Reply:
        if isinstance(step, float):
            time.sleep(step)
            return None
        try:
            return self._http.send(step)
        except httpx.RequestError as error:
            return error


class AsyncClient(_Caller):
    """Asks the reward service from coroutines of one event loop. Close it, or use it in an `async with` statement."""

    _transport = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def score(self, **arguments: Unpack[ScoreArguments]) -> ScoreResponse:
        """As `Client.score`."""
        return await self._do(self._score(arguments))

    async def compare(self, **arguments: Unpack[CompareArguments]) -> CompareResponse:
        """As `Client.compare`."""
        return await self._do(self._compare(arguments))

    async def communities(self) -> CommunitiesResponse:
        """As `Client.communities`."""
        return await self._do(self._communities())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _do(self, steps: Steps[AnswerT]) -> AnswerT:
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                return done.value
            reply = await self._take(step)

    async def _take(self, step: httpx.Request | float) -> Reply:
        if isinstance(step, float):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.send(step)
        except httpx.RequestError as error:
            return error


def _address(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ServiceError(f"url {url[:80]!r}: {error}; give the service's address, as http://localhost:8000") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ServiceError(f"url {url[:80]!r}: no http address; give the service's, as http://localhost:8000")
    return url.rstrip("/")


def _authorization(token: str | None) -> dict[str, str]:
    token = (os.environ.get(TOKEN_VARIABLE) or None) if token is None else token
    if token is None:
        return {}
    if not re.fullmatch(r"[!-~]+", token):
        raise ServiceError(
            f"the token of {len(token)} characters is empty, or holds blanks or other characters that no header carries; give it "
            f"as it stands in the service's tokens_file, with token= or {TOKEN_VARIABLE}"
        )
    return {"Authorization": f"Bearer {token}"}


RequestT = TypeVar("RequestT", bound=Question)


def _request(model: type[RequestT], arguments: Mapping[str, object]) -> RequestT:
    communities = arguments.get("communities", "all")
    if isinstance(communities, str) and communities != "all":
        communities = [communities]
    try:
        return model.model_validate({**arguments, "communities": communities})
    except ValidationError as error:
        fault = clearest(error.errors(include_url=False))
        place = ".".join(str(part) for part in fault["loc"] if isinstance(part, int) or part.isidentifier())
        raise ServiceError(f"{place or model.__name__}: {fault['msg'].removeprefix('Value error, ')}") from None


def _routing(asked: Question) -> dict[str, str]:
    """Ray Serve reads the header's bytes as UTF-8 and httpx writes ASCII, so a name beyond that goes unrouted."""
    names = [] if asked.communities == "all" else list(asked.communities)
    routes = len(names) == 1 and re.fullmatch(r"[!-~]([ -~]*[!-~])?", names[0])
    return {"Content-Type": "application/json"} | ({MODEL_HEADER: names[0]} if routes else {})


def _wait(reply: Reply, attempt: int) -> float:
    """Seconds: twice as many after each attempt, from the upper half at random so that callers spread; after any Retry-After."""
    backoff = min(_FIRST_WAIT_S * 2 ** min(attempt - 1, 30), _LONGEST_WAIT_S) * random.uniform(0.5, 1)
    asked = reply.headers.get("Retry-After", "") if isinstance(reply, httpx.Response) else ""
    return float(asked) + backoff / 4 if re.fullmatch(r"\d{1,9}(\.\d+)?", asked) else backoff


def _trouble(reply: Reply) -> str:
    if isinstance(reply, httpx.Response):
        return f"HTTP {reply.status_code} ({_refusal(reply) or reply.reason_phrase})"
    return f"{type(reply).__name__} ({(str(reply).splitlines() or ['no connection'])[0]})"


def _refusal(reply: httpx.Response) -> str | None:
    """The service's own words, where they are."""
    try:
        return ErrorResponse.model_validate_json(reply.content).error
    except ValidationError:
        return None


def _parsed(reply: httpx.Response, answer: type[AnswerT], address: str) -> AnswerT:
    if reply.is_success:
        with contextlib.suppress(ValidationError):
            return answer.model_validate_json(reply.content)
    elif (refusal := _refusal(reply)) is not None:
        raise ServiceError(f"{address}: HTTP {reply.status_code}: {refusal}")
    raise ServiceError(
        f"{address}: HTTP {reply.status_code} with {reply.text[:60]!r}, which no reward service of this version says; check the "
        "address, and that both sides run the same version"
    )
