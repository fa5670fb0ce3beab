"""Whether bundles of resources can ever be placed on the nodes of a cluster."""

from collections.abc import Mapping, Sequence

Resources = Mapping[str, float]
_ROUNDING = 1e-6


def reason_unplaceable(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> str | None:
    """Why bundles, each on one node and all at a time, can never be placed; None where no proof of that is found.

    It is proved by a resource whose sum is too small, by a bundle that fits no node, or by equal bundles of which the nodes,
    each filled with nothing else, hold too few. Other packings that fail are left to the scheduler.

    Args:
        bundles: resource -> amount that has to be on one node.
        nodes: resource -> amount, of every node when it is empty.
    """
    bundles = [bundle for bundle in bundles if any(bundle.values())]
    for resource in sorted({name for bundle in bundles for name, amount in bundle.items() if amount}):
        wanted = sum(bundle.get(resource, 0.0) for bundle in bundles)
        there = sum(node.get(resource, 0.0) for node in nodes)
        if wanted > there + _ROUNDING:
            return f"{wanted:g} {resource} needed, {there:g} there"
    for bundle in bundles:
        if not any(_copies(bundle, node) for node in nodes):
            return f"{_shown(bundle)} needed on one node, and no node has it"
    kinds: dict[str, list[Resources]] = {}
    for bundle in bundles:
        kinds.setdefault(_shown(bundle), []).append(bundle)
    for shown, equal in kinds.items():
        places = sum(_copies(equal[0], node) for node in nodes)
        if places < len(equal):
            return f"{len(equal)} x {shown} needed, each on one node; the nodes have room for {places}"
    return None


def can_hold(bundle: Resources, node: Resources) -> bool:
    """Whether a node has room for a bundle when it is empty."""
    return not any(bundle.values()) or _copies(bundle, node) > 0


def room(bundle: Resources, nodes: Sequence[Resources]) -> tuple[int, int]:
    """Nodes that can hold a bundle, and how many of it all of them have room for, each filled with nothing else.

    Raises:
        ValueError: the bundle is empty, and fits without end.
    """
    if not any(bundle.values()):
        raise ValueError("an empty bundle goes anywhere, any number of times")
    places = [_copies(bundle, node) for node in nodes]
    return sum(number > 0 for number in places), sum(places)


def most_on(bundle: Resources, node: Resources, number: int) -> int:
    """How many of a number of equal bundles are put on an empty node: as many as fit, which is how groups are packed."""
    return min(number, _copies(bundle, node)) if any(bundle.values()) else number


def _copies(bundle: Resources, node: Resources) -> int:
    """How often a bundle fits an empty node."""
    fits = [int((node.get(name, 0.0) + _ROUNDING) // amount) for name, amount in bundle.items() if amount]
    return min(fits)


def _shown(bundle: Resources) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in sorted(bundle.items()) if amount)
