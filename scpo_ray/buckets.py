"""Whether an object store answers at all, known before its client has tried for seconds."""

import os
import socket
from urllib.parse import parse_qs, urlsplit

from scpo_ray.errors import StorageError

_PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
_S3_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_GOOGLE_ENDPOINTS = ("CLOUD_STORAGE_EMULATOR_ENDPOINT",)
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_CONNECT_S = 2.0
"""A store that takes longer to answer a first packet is none to train on."""


def check_host(address: str) -> None:
    """Refuse an `s3://` or `gs://` address whose host nobody here knows, or where nobody listens; other addresses pass, and
    all do behind a proxy, which knows better.

    Raises:
        StorageError: with the host.
    """
    if not address.startswith(("s3://", "gs://", "gcs://")) or any(os.environ.get(proxy) for proxy in _PROXIES):
        return
    host, port = _host(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            raise StorageError(
                f"{address}: no host {host} is known here; check the network, or name another endpoint {_remedy(address)}"
            ) from None
    except OSError as error:
        reason = f"no answer within {_CONNECT_S:g} s" if isinstance(error, TimeoutError) else error.strerror
        raise StorageError(
            f"{address}: {host}:{port}: {reason}; check the network, or name another endpoint {_remedy(address)}"
        ) from None


def _remedy(address: str) -> str:
    return "(AWS_ENDPOINT_URL)" if address.startswith("s3://") else f"({_GOOGLE_ENDPOINTS[0]})"


def _host(address: str) -> tuple[str, int]:
    """Host and port where Arrow's client will look, as the address, the environment or the provider has it."""
    options = parse_qs(urlsplit(address).query)

    def said(option: str, variables: tuple[str, ...], default: str) -> str:
        return next(filter(None, (*options.get(option, ()), *map(os.environ.get, variables))), default)

    if address.startswith("s3://"):
        region = said("region", _REGIONS, "us-east-1")
        default = f"s3.{region}.amazonaws.com" + ".cn" * region.startswith("cn-")
        endpoint = said("endpoint_override", _S3_ENDPOINTS, default)
    else:
        endpoint = said("endpoint_override", _GOOGLE_ENDPOINTS, "storage.googleapis.com")
    parts = urlsplit(endpoint if "://" in endpoint else f"{said('scheme', (), 'https')}://{endpoint}")
    return parts.hostname or endpoint, parts.port or {"http": 80}.get(parts.scheme, 443)
