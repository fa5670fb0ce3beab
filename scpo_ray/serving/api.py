"""The endpoints: HTTP around `Service`. Every refusal is one JSON line, `{"error": ...}`."""

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import DataError, ModelError, ScpoError
from scpo_ray.serving.batching import BusyError
from scpo_ray.serving.gate import Gate
from scpo_ray.serving.limits import check_texts
from scpo_ray.serving.loading import StaleModelError
from scpo_ray.serving.metrics import CONTENT_TYPE, Metrics
from scpo_ray.serving.rewards import Text
from scpo_ray.serving.schemas import (
    CommunitiesResponse,
    CompareRequest,
    CompareResponse,
    ErrorResponse,
    ScoreRequest,
    ScoreResponse,
    Wire,
    clearest,
)
from scpo_ray.serving.service import Service, UnknownCommunityError, on_scale, require_scales
from scpo_ray.serving.tokens import Tokens
from scpo_ray.serving.trainers import (
    EMPTY_REWARD,
    ClassifyRequest,
    ClassifyResponse,
    Exchange,
    OpenRlhfRequest,
    OpenRlhfResponse,
    SlimeRequest,
    classify_response,
    openrlhf_response,
)

_HERE = Path(__file__).parent
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_PAGE = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_REFUSALS: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in (
        (400, "The body is no JSON, or a header no number."),
        (401, "No known bearer token."),
        (404, "No such community or path."),
        (408, "The body came too slowly."),
        (413, "The body is too large."),
        (422, "A value is not one that can be answered."),
        (429, "Too much waits; `Retry-After` says for how long."),
        (503, "Not answered before the deadline, or the replica is going; `Retry-After` says when to try again."),
    )
}
_STATUS: tuple[tuple[type[ScpoError], int], ...] = (
    (UnknownCommunityError, 404),
    (BusyError, 429),
    (DataError, 422),
    (StaleModelError, 503),
    (ModelError, 500),
)
_UNTIL_DEPLOYED_S = 10
"""A model has changed, and the service will know soon."""
Community = Annotated[str, InPath(description="Whose reward model.", max_length=200)]


def make_api(config: ServeConfig, service: Service, *, tokens: Tokens | None, replica: str) -> FastAPI:
    """The application, ready to be run by Ray Serve or any ASGI server.

    Args:
        tokens: None where authentication is off.
        replica: its name in metrics.
    """
    metrics = Metrics(replica)
    metrics.watch(service.rewards)
    api = FastAPIOffline(
        title="scpo_ray rewards",
        version=version("scpo_ray"),
        description="What would people of different communities think of this answer?",
        responses=_REFUSALS,
        redoc_url=None,
        dependencies=[Depends(HTTPBearer(auto_error=False))],  # for the docs alone: the gate has looked already
    )
    _add_questions(api, config, service)
    _add_trainers(api, config, service)
    _add_operations(api, metrics)
    _add_page(api)
    _add_errors(api)
    _describe_deadline(api)
    api.add_middleware(
        Gate, config=config, tokens=tokens, metrics=metrics, retry_after_s=lambda: service.rewards.retry_after_s
    )
    if config.cors_origins:  # around the gate: a browser asks whether it may ask before it shows its token
        api.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Deadline-S"],
            expose_headers=["Retry-After"],
        )
    return api


def _describe_deadline(api: FastAPI) -> None:
    """The gate reads the header. As a parameter of the endpoints FastAPI would look through every request's headers for it."""
    parameter = {
        "name": "X-Deadline-S",
        "in": "header",
        "required": False,
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Seconds; a request that is not answered by then gets 503.",
    }
    generated = api.openapi

    def described() -> dict[str, Any]:
        schema = generated()
        for operations in schema["paths"].values():
            for operation in operations.values():
                if parameter not in operation.setdefault("parameters", []):
                    operation["parameters"].append(parameter)
        return schema

    api.openapi = described  # type: ignore[method-assign]


def written(answer: Wire) -> Response:
    """As JSON, at once: FastAPI would check and copy what has just been checked."""
    return Response(answer.model_dump_json(), media_type="application/json")


def _add_questions(api: FastAPI, config: ServeConfig, service: Service) -> None:
    @api.post("/v1/score", response_model=ScoreResponse)
    async def score(request: ScoreRequest) -> Response:
        """Rewards of one or many responses, under one, several or all communities' models."""
        check_texts("responses", [Text(request.context, text) for text in request.texts], config)
        return written(await service.score(request))

    @api.post("/v1/compare", response_model=CompareResponse)
    async def compare(request: CompareRequest) -> Response:
        """P(A beats B) in every community, and how far they are apart."""
        answers = (request.response_a, request.response_b)
        check_texts("response_a, response_b", [Text(request.context, text) for text in answers], config)
        return written(await service.compare(request))

    @api.get("/v1/communities")
    async def communities() -> CommunitiesResponse:
        """Everyone who is served, with what is known of their models."""
        return service.communities()


def _add_trainers(api: FastAPI, config: ServeConfig, service: Service) -> None:
    async def rewarded(community: str, exchanges: Sequence[Exchange]) -> tuple[list[float], list[bool]]:
        """Calibrated rewards, and what was cut; responses without text are asked of nobody."""
        model = service.model_of(community)
        require_scales([model])  # the reward of an empty response means something on that scale alone
        check_texts("responses", [Text(exchange.context, exchange.response) for exchange in exchanges], config)
        texts = [Text(exchange.context, exchange.response) for exchange in exchanges if not exchange.is_empty]
        found = iter((await service.rewards_of([model], texts))[0])
        rewards, truncated = [], []
        for exchange in exchanges:
            reward = None if exchange.is_empty else next(found)
            rewards.append(EMPTY_REWARD if reward is None else on_scale(reward, model.scale))
            truncated.append(reward is not None and reward.truncated)
        return rewards, truncated

    @api.post("/v1/rewards/{community}/openrlhf", tags=["trainers"])
    async def openrlhf(community: Community, request: OpenRlhfRequest) -> OpenRlhfResponse:
        """For OpenRLHF's `--reward.remote_url` (`--remote_rm_url`)."""
        rewards, truncated = await rewarded(community, request.exchanges)
        return openrlhf_response(
            rewards, is_empty=[exchange.is_empty for exchange in request.exchanges], truncated=truncated
        )

    @api.post("/v1/rewards/{community}/slime", tags=["trainers"])
    async def slime(community: Community, request: SlimeRequest) -> float:
        """For slime's `--rm-url`."""
        rewards, _ = await rewarded(community, [request.exchange])
        return rewards[0]

    @api.post("/classify", tags=["trainers"])
    async def classify(request: ClassifyRequest) -> ClassifyResponse:
        """vLLM's classification endpoint, as verl calls it: raw rewards of texts that have the model's own template."""
        model = service.model_of(request.model)
        texts = [Text((), text) for text in request.input]
        check_texts("input", texts, config)
        for place, text in enumerate(texts):
            if not text.response.strip():
                raise DataError(f"input {place}: is blank; give some text")
        found = (await service.rewards_of([model], texts))[0]
        return classify_response(
            request,
            [reward.value for reward in found],
            identifier=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            num_tokens=sum(reward.num_tokens for reward in found),
        )


def _add_operations(api: FastAPI, metrics: Metrics) -> None:
    @api.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """The replica lives."""
        return {"status": "alive"}

    async def head(_: Request) -> Response:
        return Response()

    for path in ("/", "/healthz", "/readyz"):  # as load balancers ask
        api.add_route(path, head, methods=["HEAD"], include_in_schema=False)

    @api.get("/readyz", tags=["operations"])
    async def readyz() -> dict[str, str]:
        """The replica has read its models: Ray Serve sends it nothing before."""
        return {"status": "ready"}

    @api.get("/metrics", tags=["operations"], response_class=Response)
    async def prometheus() -> Response:
        """This replica's metrics, in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_page(api: FastAPI) -> None:
    for name, media_type in _PAGE.items():
        content = (_HERE / name).read_bytes()
        path = "/" if name == "page.html" else f"/{name}"
        api.add_api_route(path, _file(content, media_type), include_in_schema=False, response_class=Response)


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    async def serve() -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return serve


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": first_error(error)}, status_code=422)

    @api.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)

    @api.exception_handler(ScpoError)
    async def known(_: Request, error: ScpoError) -> JSONResponse:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        headers = None
        if status in (429, 503):
            headers = {"Retry-After": str(error.retry_after_s if isinstance(error, BusyError) else _UNTIL_DEPLOYED_S)}
        return JSONResponse({"error": str(error)}, status_code=status, headers=headers)

    @api.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"failed within ({type(error).__name__}); the replica's log has it"}, 500)


def first_error(error: RequestValidationError) -> str:
    """Where and what, in one line."""
    found = clearest(error.errors())
    if (found["type"], found["loc"]) == (
        "model_attributes_type",
        ("body",),
    ):  # FastAPI reads JSON where it is said to be
        return "body: not a JSON object; send one, with 'Content-Type: application/json'"
    place = ".".join(str(part) for part in found["loc"] if part != "body" and "[" not in str(part)) or "body"
    line = f"{place}: {found['msg'].removeprefix('Value error, ')}"
    return line.encode("ascii", "backslashreplace").decode()[:300]
