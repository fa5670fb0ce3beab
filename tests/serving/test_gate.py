"""What the gate writes to the log and what it keeps to itself, which pages may call, who may ask."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from fastapi import FastAPI

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import ModelError
from scpo_ray.serving.api import make_api
from scpo_ray.serving.catalog import read_catalog
from scpo_ray.serving.loading import StaleModelError, load_models
from scpo_ray.serving.rewards import Rewards
from scpo_ray.serving.service import Service
from scpo_ray.serving.tokens import Tokens

TOKEN = "a-token-that-stands-in-no-log"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
WRONG = {"Authorization": "Bearer a-guess-that-stands-in-no-log"}
AS_PASSWORD = {"Authorization": "Basic " + base64.b64encode(f"x:{TOKEN}".encode()).decode()}
SECRETS = (TOKEN, *(headers["Authorization"].split()[1] for headers in (WRONG, AS_PASSWORD)))

MARKER = "marmalade"
GOOD = {"prompt": f"what about {MARKER} ?", "response": f"i like {MARKER} .", "scale": "raw"}
REFUSED = GOOD | {"scale": "calibrated"}  # a model from elsewhere has no scale


@pytest.fixture
def serve(tiny_reward_model, tmp_path) -> Iterator[Callable[..., FastAPI]]:
    """`serve(log_texts=True)`: the application over one community's small model."""
    file = tmp_path / "tokens.txt"
    file.write_text(f"{TOKEN}\n")
    made: list[Rewards] = []

    def start(**settings: object) -> FastAPI:
        served = {"models": {"Chile": str(tiny_reward_model)}, "format": {"max_tokens": 96}}
        config = ServeConfig.model_validate({"tokens_file": str(file)} | served | settings)
        catalog = read_catalog(config)
        made.append(Rewards(config, load_models(config, catalog)))
        tokens = Tokens(str(file)) if config.authentication == "bearer" else None
        return make_api(config, Service(catalog, made[-1]), tokens=tokens, replica="r")

    yield start
    for rewards in made:
        rewards.close()


@pytest.fixture
def log(caplog, monkeypatch) -> pytest.LogCaptureFixture:
    """Every record; those of `ray.serve` too where Ray Serve, which keeps them apart, runs in this process."""
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    for name in ("", "ray.serve"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def everything(log: pytest.LogCaptureFixture) -> str:
    """What the records say and hold."""
    return "\n".join(f"{record.getMessage()} {vars(record)}" for record in log.records)


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    """What the service itself wrote."""
    return [record.getMessage() for record in log.records if record.name == "ray.serve"]


def answers(api: FastAPI, *requests: dict) -> list[httpx.Response]:
    """In turn."""

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://rewards") as client:
            return [await client.request(**request) for request in requests]

    return asyncio.run(ask())


def score(body: dict, headers: dict[str, str]) -> dict:
    return {"method": "POST", "url": "/v1/score", "json": body, "headers": headers}


def statuses(api: FastAPI, *requests: dict) -> list[int]:
    return [answer.status_code for answer in answers(api, *requests)]


CALLS = [
    score(body, headers)
    for body in (GOOD, REFUSED)
    for headers in (KNOWN, AS_PASSWORD, WRONG, {"Authorization": TOKEN}, {})
]
STATUSES = [200, 200, 401, 401, 401, 422, 422, 401, 401, 401]


def test_by_default_neither_texts_nor_tokens_are_logged(serve, log):
    assert statuses(serve(), *CALLS) == STATUSES
    assert not any(secret in everything(log) for secret in (MARKER, *SECRETS))


def test_with_log_texts_only_the_texts_of_refused_requests_are_logged_and_never_a_token(serve, log):
    assert statuses(serve(log_texts=True), *CALLS) == STATUSES
    refused = [line for line in lines(log) if line.startswith("'/v1/score' 422: ")]
    assert len(refused) == 2 and all(REFUSED["response"] in line and "calibrated" in line for line in refused)
    assert not any(MARKER in line for line in lines(log) if line not in refused)
    assert not any(secret in everything(log) for secret in SECRETS)


def test_with_log_texts_whoever_has_no_token_writes_no_text_to_the_log(serve, log):
    assert statuses(serve(log_texts=True), score(GOOD, {}), score(REFUSED, WRONG)) == [401, 401]
    assert lines(log) == ["'/v1/score' 401: b''"] * 2


def test_with_log_texts_the_text_of_a_failed_request_is_logged(serve, log, monkeypatch):
    async def fail(*_: object) -> None:
        raise ModelError("Chile: a reward is nan; its model is damaged, take it out of service")

    monkeypatch.setattr(Rewards, "of", fail)
    assert statuses(serve(log_texts=True), score(GOOD, KNOWN)) == [500]
    (line,) = lines(log)
    assert line.startswith("'/v1/score' 500: ") and GOOD["response"] in line


def test_with_log_texts_at_most_four_kilobytes_of_a_body_are_logged(serve, log):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 1000

    request = {"method": "POST", "url": "/v1/score", "headers": KNOWN}
    whole, in_pieces = request | {"content": b"x" * 10_000}, request | {"content": body()}
    assert statuses(serve(log_texts=True), whole, in_pieces) == [422, 422]
    assert lines(log) == [f"'/v1/score' 422: {b'x' * 4096!r}"] * 2


ORIGIN, OTHER = "https://page.example", "https://elsewhere.example"
GRANT = "access-control-allow-origin"


def preflight(origin: str) -> dict:
    """What a browser asks before it sends a page's request; it shows no token."""
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return {"method": "OPTIONS", "url": "/v1/score", "headers": {"Origin": origin} | asked}


def test_pages_of_other_origins_may_not_call_unless_they_are_named(serve):
    asked, answered = answers(serve(), preflight(ORIGIN), score(GOOD, KNOWN | {"Origin": ORIGIN}))
    assert asked.status_code == 401
    assert answered.status_code == 200
    assert not any(name.startswith("access-control-") for answer in (asked, answered) for name in answer.headers)


def test_pages_of_a_named_origin_may_call_and_others_may_not(serve):
    api = serve(cors_origins=(ORIGIN,))
    (asked,) = answers(api, preflight(ORIGIN))
    assert (asked.status_code, asked.headers[GRANT]) == (200, ORIGIN)
    assert {"authorization", "content-type"} <= set(asked.headers["access-control-allow-headers"].lower().split(", "))
    called = answers(api, score(GOOD, KNOWN | {"Origin": ORIGIN}), score(GOOD, {"Origin": ORIGIN}))
    assert [(answer.status_code, answer.headers[GRANT]) for answer in called] == [(200, ORIGIN), (401, ORIGIN)]
    refused = answers(api, preflight(OTHER), score(GOOD, KNOWN | {"Origin": OTHER}))
    assert [answer.status_code for answer in refused] == [400, 200]
    assert not any(GRANT in answer.headers for answer in refused)


def test_without_authentication_whoever_asks_is_answered(serve):
    asked = [score(GOOD, headers) for headers in ({}, WRONG, KNOWN)]
    asked += [{"method": "GET", "url": url} for url in ("/v1/communities", "/metrics")]
    assert statuses(serve(), asked[0], *asked[3:]) == [401, 401, 401]
    assert statuses(serve(authentication="off", tokens_file=None), *asked) == [200] * 5


def test_a_path_cannot_forge_a_line_of_the_log(serve, log):
    forged = {"method": "GET", "url": "/x%0AWARNING%20replica%20killed%1B[31m" + "y" * 500, "headers": KNOWN}
    assert statuses(serve(log_texts=True), forged) == [404]
    (line,) = lines(log)
    assert line.isprintable() and len(line) < 250


def test_what_nobody_foresaw_is_told_as_json_without_its_text(serve, monkeypatch):
    async def fail(*_: object) -> None:
        raise ValueError(MARKER)

    monkeypatch.setattr(Rewards, "of", fail)
    (answer,) = answers(serve(), score(GOOD, KNOWN))
    assert answer.status_code == 500
    assert answer.json() == {"error": "failed within (ValueError); the replica's log has it"}


def test_a_model_that_changed_is_a_503_that_clients_try_again(serve, monkeypatch):
    async def fail(*_: object) -> None:
        raise StaleModelError("folder: Chile's model has changed since the service was deployed; deploy again")

    monkeypatch.setattr(Rewards, "of", fail)
    (answer,) = answers(serve(), score(GOOD, KNOWN))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert "deploy again" in answer.json()["error"]


def test_whoever_hangs_up_is_not_counted_as_a_failure(serve, monkeypatch):
    async def wait(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(Rewards, "of", wait)
    api = serve()

    async def hang_up() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://rewards") as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.request(**score(GOOD, KNOWN)), 0.2)
            return (await client.get("/metrics", headers=KNOWN)).text

    counts = [line for line in asyncio.run(hang_up()).splitlines() if line.startswith("scpo_requests_total")]
    assert len(counts) == 1 and 'status="499"' in counts[0]
