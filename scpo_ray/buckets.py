"""Whether an object store can be reached by name at all, known before its client has tried for seconds."""

import os
import socket
from urllib.parse import parse_qs, urlsplit

from scpo_ray.errors import StorageError

_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


def check_host(address: str) -> None:
    """Refuse an `s3://` address whose host nobody here knows; other addresses pass.

    Raises:
        StorageError: with the host.
    """
    if not address.startswith("s3://") or any(os.environ.get(proxy) for proxy in _PROXIES):
        return
    host = _host(address)
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise StorageError(
                f"{address}: no host {host} is known here; check the network, or name another endpoint (AWS_ENDPOINT_URL)"
            ) from None


def _host(address: str) -> str:
    """Where Arrow's client will look, as the address, the environment or AWS has it."""
    options = parse_qs(urlsplit(address).query)

    def said(option: str, variables: tuple[str, ...], default: str) -> str:
        return next(filter(None, (*options.get(option, ()), *map(os.environ.get, variables))), default)

    region = said("region", _REGIONS, "us-east-1")
    endpoint = said("endpoint_override", _ENDPOINTS, f"s3.{region}.amazonaws.com" + ".cn" * region.startswith("cn-"))
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or endpoint
