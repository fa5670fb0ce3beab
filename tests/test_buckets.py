"""Hosts of object stores: found, or refused by name."""

import contextlib
import socket
import time

import pytest

from scpo_ray.buckets import _host, check_host
from scpo_ray.errors import StorageError
from scpo_ray.local_cluster import free_port

NOWHERE = "no-such-host.invalid"  # RFC 6761: nobody has it


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "HTTPS_PROXY",
        "https_proxy",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "environment", "host", "port"),
    [
        ("s3://runs/run", {}, "s3.us-east-1.amazonaws.com", 443),
        ("s3://runs/run", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3.eu-west-1.amazonaws.com", 443),
        ("s3://runs/run?region=cn-north-1", {"AWS_REGION": "eu-west-1"}, "s3.cn-north-1.amazonaws.com.cn", 443),
        ("s3://runs/run", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, "127.0.0.1", 9000),
        ("s3://runs/run", {"AWS_ENDPOINT_URL": "http://a:9", "AWS_ENDPOINT_URL_S3": "https://b"}, "b", 443),
        ("s3://runs/run?endpoint_override=minio%3A9000&scheme=http", {"AWS_ENDPOINT_URL": "http://a:9"}, "minio", 9000),
        ("s3://runs/run?endpoint_override=minio&scheme=http", {}, "minio", 80),
        ("gs://runs/run", {"AWS_ENDPOINT_URL": "http://a:9"}, "storage.googleapis.com", 443),
        ("gcs://runs/run", {"CLOUD_STORAGE_EMULATOR_ENDPOINT": "http://a:4443"}, "a", 4443),
    ],
)
def test_where_a_bucket_is_looked_for(monkeypatch, address, environment, host, port):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _host(address) == (host, port)


def test_a_host_that_nobody_knows_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    with pytest.raises(StorageError, match=rf"^s3://runs/run: no host {NOWHERE} is known here; check the network"):
        check_host("s3://runs/run")


@pytest.mark.parametrize("address", ["s3://runs/run", "gs://runs/run"])
def test_where_nobody_listens_is_refused_at_once(monkeypatch, address):
    port = free_port()
    for name in ("AWS_ENDPOINT_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    start = time.monotonic()
    with pytest.raises(StorageError, match=rf"^{address}: 127.0.0.1:{port}: Connection refused; check the network"):
        check_host(address)
    assert time.monotonic() - start < 1


def test_a_host_that_does_not_answer_is_given_two_seconds(monkeypatch):
    """Its queue of one is full: a further connection waits, as behind a firewall that says nothing."""
    with socket.socket() as silent, contextlib.ExitStack() as waiting:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(StorageError, match="no answer within 2 s"):
            check_host("s3://runs/run")
        assert time.monotonic() - start < 3


def test_others_pass(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        check_host("s3://runs/run")
    check_host("/runs")
    check_host("file:///runs")


def test_a_proxy_may_know_more_hosts(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    check_host("s3://runs/run")
