"""What Ray Serve's router is told of a replica's whole models, so that it sends a model's callers where it is in memory."""

import time
from collections import OrderedDict
from collections.abc import Callable

_SECONDS = 1.0


class Notices:
    """The models that were asked for last, of which one a second may change.

    Where callers ask for many more models than there are places, what is in memory changes faster than a router could follow; and
    Ray Serve sends every change to its controller, and from there to all proxies, ten times a second.

    Args:
        max_models: how many the router remembers of a replica.
        clock: seconds.
    """

    def __init__(self, max_models: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_models, self._clock = max_models, clock
        self._told: OrderedDict[str, None] = OrderedDict()
        self._changed_s = -_SECONDS

    def is_due(self, model: str) -> bool:
        """Whether the router is to hear that this model was asked for; then it is taken to have heard."""
        if model not in self._told and len(self._told) == self._max_models:
            now = self._clock()
            if now < self._changed_s + _SECONDS:
                return False
            self._changed_s = now
            self._told.popitem(last=False)
        self._told[model] = None
        self._told.move_to_end(model)
        return True
