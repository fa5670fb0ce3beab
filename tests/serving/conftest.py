"""A real service on Ray Serve, over the models of small finished runs."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.serving.settings import settings_of
from tests.conftest import TINY

TOKEN = "a-token-that-only-the-tests-know"


@pytest.fixture(scope="session")
def adapter_run(ray_cluster, tmp_path_factory) -> Config:
    """A finished pipeline on an encoder whose communities are LoRA adapters."""
    from scpo_ray.stages import pipeline

    train = {"epochs": 6, "learning_rate": 3e-3, "lora": {"enabled": True, "rank": 4}}
    train_global = {"epochs": 2, "learning_rate": 2e-3, "scratch": {"architecture": "bert"}}
    config = Config(
        run_dir=str(tmp_path_factory.mktemp("adapters") / "run"),
        **TINY | {"train": train, "train_global": train_global},
    )
    pipeline.run(config)
    return config


@pytest.fixture(scope="session")
def tokens_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "tokens.txt"
    path.write_text(f"{TOKEN}  # the tests\n")
    return path


@pytest.fixture(scope="session")
def service_token() -> str:
    return TOKEN


@pytest.fixture(scope="package")
def deploy(ray_cluster, tokens_file) -> Iterator[Callable[..., str]]:
    """Starts a service under a name of its own and gives its address: `deploy("name", run_dir=..., max_queued=...)`."""
    from ray import serve

    from scpo_ray.serving.deployment import application

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    def start(name: str, *, num_replicas: int = 1, **settings: object) -> str:
        settings = {"tokens_file": str(tokens_file), "threads": 1} | settings
        made = application(settings_of(settings), num_replicas=num_replicas, num_cpus=0)
        serve.run(made, name=name, route_prefix=f"/{name}")
        return f"http://127.0.0.1:{port}/{name}"

    yield start
    serve.shutdown()


@pytest.fixture(scope="package")
def service_url(deploy, controlled_run) -> str:
    """Every community of a small run of decoders, whole models."""
    return deploy("decoders", run_dir=controlled_run.run_dir)


@pytest.fixture(scope="package")
def adapters_url(deploy, adapter_run) -> str:
    """Every community of a small run of LoRA adapters on an encoder."""
    return deploy("adapters", run_dir=adapter_run.run_dir)


@pytest.fixture
def ask(service_token) -> Iterator[httpx.Client]:
    with httpx.Client(headers={"Authorization": f"Bearer {service_token}"}, timeout=60) as client:
        yield client


def responses_of(config: Config) -> tuple[list[list[dict]], list[str]]:
    """Every (context, response) of a run."""
    rows = RunDirectory(config.run_dir).read_table("prepared/responses.parquet").to_pylist()
    return [row["context"] for row in rows], [row["response"] for row in rows]


def eventually(check: Callable[[], bool], *, seconds: float = 30) -> None:
    """Waits until it holds."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)
