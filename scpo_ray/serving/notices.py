"""What Ray Serve's router is told of a replica's whole models, so that it sends a model's callers where it likely is."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

_SECONDS = 1.0


class Notices:
    """The models that were asked for last, or where these change faster, some of those asked for lately: once all places are
    full, one a second is replaced.

    Where callers ask for many more models than there are places, what is in memory changes faster than a router could follow;
    and Ray Serve sends changes to its controller, and from there to all proxies, up to ten times a second. Callers of a model
    that the router does not know of go to any replica.

    Args:
        max_models: how many the router remembers of a replica.
        tell: tells it.
        clock: seconds.
    """

    def __init__(
        self, max_models: int, tell: Callable[[str], Awaitable[object]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_models, self._tell, self._clock = max_models, tell, clock
        self._told: OrderedDict[str, None] = OrderedDict()
        self._changed_s = -_SECONDS

    async def asked_for(self, model: str) -> None:
        """Tell the router that this model was asked for, where it has not heard of too many lately."""
        if self._is_due(model):
            await self._tell(model)

    def _is_due(self, model: str) -> bool:
        if model not in self._told and len(self._told) == self._max_models:
            now = self._clock()
            if now < self._changed_s + _SECONDS:
                return False
            self._changed_s = now
            self._told.popitem(last=False)
        self._told[model] = None
        self._told.move_to_end(model)
        return True
