"""Bearer tokens: several at a time, read again when their file changes, compared in constant time."""

import base64
import hashlib
import hmac
import logging
import time
from pathlib import Path

from scpo_ray.errors import ConfigError

MIN_LENGTH = 16
_CHECK_EVERY_S = 1.0
_LOGGER = logging.getLogger("ray.serve")


class Tokens:
    """Who may ask. A file that vanishes or holds no token lets nobody in.

    Args:
        file: one token per line; `#` starts a comment.

    Raises:
        ConfigError: the file cannot be read, holds no token, or one that is too short.
    """

    def __init__(self, file: str) -> None:
        self._file = Path(file)
        self._state = self._look()
        self._digests = self._read()
        self._checked = time.monotonic()

    def admit(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header names a known token: as bearer, or as the password of `http://x:TOKEN@host/`,
        which is all that some trainers can send. Every known token is compared, found or not."""
        self._refresh()
        given = hashlib.sha256(_token_of(authorization or "").encode()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)

    def _refresh(self) -> None:
        if time.monotonic() - self._checked < _CHECK_EVERY_S:
            return
        self._checked = time.monotonic()
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self._digests = self._read()
            _LOGGER.info("%s changed: %d tokens", self._file, len(self._digests))
        except ConfigError as error:
            self._digests = []
            _LOGGER.error("%s; nobody is let in until it is mended", error)

    def _look(self) -> tuple[int, int, int] | None:
        """What changes with the file: also when it is replaced by another within the clock's grain."""
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[bytes]:
        try:
            lines = self._file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"tokens_file {self._file}: cannot be read ({error}); give a text file") from None
        tokens = [token for line in lines if (token := line.partition("#")[0].strip())]
        if not tokens:
            raise ConfigError(f"tokens_file {self._file}: no token in it; write one per line")
        for number, token in enumerate(tokens, start=1):
            if len(token) < MIN_LENGTH:
                raise ConfigError(
                    f"tokens_file {self._file}: token {number} has {len(token)} characters, at least {MIN_LENGTH} are needed "
                    "(openssl rand -hex 32 makes one)"
                )
        return [hashlib.sha256(token.encode()).digest() for token in tokens]


def _token_of(authorization: str) -> str:
    """Empty where there is none; no known token is."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, no ASCII, no UTF-8
            return ""
    return ""
