"""Hosts of object stores: found, or refused by name."""

import pytest

from scpo_ray.buckets import _host, check_host
from scpo_ray.errors import StorageError

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
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("address", "environment", "host"),
    [
        ("s3://runs/run", {}, "s3.us-east-1.amazonaws.com"),
        ("s3://runs/run", {"AWS_DEFAULT_REGION": "eu-west-1"}, "s3.eu-west-1.amazonaws.com"),
        ("s3://runs/run?region=cn-north-1", {"AWS_REGION": "eu-west-1"}, "s3.cn-north-1.amazonaws.com.cn"),
        ("s3://runs/run", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}, "127.0.0.1"),
        ("s3://runs/run", {"AWS_ENDPOINT_URL": "http://a:9", "AWS_ENDPOINT_URL_S3": "https://b"}, "b"),
        ("s3://runs/run?endpoint_override=minio%3A9000&scheme=http", {"AWS_ENDPOINT_URL": "http://a:9"}, "minio"),
    ],
)
def test_where_a_bucket_is_looked_for(monkeypatch, address, environment, host):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _host(address) == host


def test_a_host_that_nobody_knows_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    with pytest.raises(StorageError, match=rf"^s3://runs/run: no host {NOWHERE} is known here; check the network"):
        check_host("s3://runs/run")


def test_others_pass(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    check_host("s3://runs/run")
    check_host("gs://runs/run")
    check_host("/runs")


def test_a_proxy_may_know_more_hosts(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NOWHERE}")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    check_host("s3://runs/run")
