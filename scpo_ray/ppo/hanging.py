"""Actors whose calls may not hang: a collective whose peer is gone, an engine that waits for itself."""

import contextlib
import faulthandler
from collections.abc import Iterator


class EndsIfHung:
    """An actor that is asked through `call` ends where a call outlasts its limit; the stacks of its threads are in its log then.

    Who waits for it hears of a death, and treats it as any other.
    """

    def call(self, limit_s: float, method: str, *arguments: object, **options: object) -> object:
        """A method's result."""
        with _limited(limit_s):
            return getattr(self, method)(*arguments, **options)


@contextlib.contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    faulthandler.dump_traceback_later(limit_s, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
