"""A request has to come in time and to end: uvicorn, which Ray Serve's proxies run, bounds neither head nor trailers.

Ray Serve lets nobody name a protocol class, so what uvicorn's `auto` stands for is set in the proxy's process.
"""

import asyncio
import math
import os

import uvicorn.protocols.http.auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scpo_ray.errors import ConfigError

TIMEOUT_VARIABLE = "SCPO_SERVE_HEAD_TIMEOUT_S"
_DEFAULT_TIMEOUT_S = 10.0
_MAX_HEAD_BYTES, _MAX_FIELDS = 65_536, 100


class _TooLargeError(Exception):
    """Stops the parser."""


class BoundedHeads(HttpToolsProtocol):
    """Closes connections whose next head has not come within `SCPO_SERVE_HEAD_TIMEOUT_S` seconds of its first byte (408),
    or of the connection, and those whose head is longer than 64 KiB or has more than 100 fields (431), since frameworks look
    through all of them once for each. Trailers are dropped. A request that was answered before all of it had come has as long
    to end."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes: int | None = None
    """Of the head that is being read, after the piece in which it began; None while there is none."""
    _num_fields: int = 0
    _parsed_bytes: int = 0
    """Of the head that is being read: address, names and values."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to a head."""
        known = self._head_bytes
        super().data_received(data)
        if known is None or self._head_bytes is None:
            return
        self._head_bytes = known + len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse_size()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = self._num_fields = self._parsed_bytes = 0
        if self._timer is None:
            self._wait_for_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; a trailer, which comes after it, is nobody's business."""
        if self._head_bytes is not None:
            self._num_fields += 1
            self._count(name, value)
            super().on_header(name, value)

    def on_url(self, url: bytes) -> None:
        """A piece of the address."""
        self._count(url)
        super().on_url(url)

    def _count(self, *parts: bytes) -> None:
        self._parsed_bytes += sum(map(len, parts))
        if self._is_too_large:
            raise _TooLargeError

    @property
    def _is_too_large(self) -> bool:
        return self._num_fields > _MAX_FIELDS or self._parsed_bytes > _MAX_HEAD_BYTES

    def send_400_response(self, msg: str) -> None:
        """What came cannot be parsed, or was not any further."""
        if self._is_too_large:
            self._refuse_size()
        else:
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        """What still comes of an answered request is read for a while, so that its sender sees the answer."""
        super().on_response_complete()
        if self.cycle.more_body and self._timer is None:
            self._timer = self.loop.call_later(timeout_s(), self.transport.close)

    def on_message_complete(self) -> None:
        """All of a request is there; one that was answered before leaves uvicorn without any timer."""
        self._stop_waiting()
        if self.cycle is not None and self.cycle.response_complete:
            self._wait_for_head()
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        """It is there."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits any longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(timeout_s(), self._give_up)

    def _stop_waiting(self) -> None:
        self._head_bytes = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._head_bytes is not None:
            self._refuse(b"408 Request Timeout", f"head: not complete within {timeout_s():g} s")
        else:
            self.transport.close()  # nothing was asked

    def _refuse_size(self) -> None:
        error = f"head: longer than {_MAX_HEAD_BYTES} bytes, or more than {_MAX_FIELDS} fields"
        self._refuse(b"431 Request Header Fields Too Large", error)

    def _refuse(self, status: bytes, error: str) -> None:
        """One line, unless an earlier request of this connection is being answered."""
        self._stop_waiting()
        if self.cycle is None or self.cycle.response_complete:
            body = b'{"error":"%s"}' % error.encode()
            fields = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(b"HTTP/1.1 " + status + b"\r\n" + fields + body)
        self.transport.close()


def timeout_s() -> float:
    """Seconds for a head."""
    return seconds_of(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT_S)


def seconds_of(variable: str, default: float) -> float:
    """A limit that the environment names.

    Raises:
        ConfigError: it is no number above 0.
    """
    value = os.environ.get(variable, str(default))
    seconds = positive(value)
    if seconds is None:
        raise ConfigError(f"{variable}: {value[:40]!r} is no number of seconds above 0")
    return seconds


def positive(text: str | bytes) -> float | None:
    """The finite number above 0 that a text is; None where it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def bound() -> None:
    """For every HTTP server that this process starts from now on.

    Raises:
        ConfigError: `SCPO_SERVE_HEAD_TIMEOUT_S` is no number above 0.
    """
    seconds_of(TIMEOUT_VARIABLE, _DEFAULT_TIMEOUT_S)
    uvicorn.protocols.http.auto.AutoHTTPProtocol = BoundedHeads
