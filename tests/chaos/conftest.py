"""Two nodes that every test here disturbs, and that are whole again afterwards."""

from collections.abc import Iterator

import pytest

from tests.chaos.__main__ import NODES
from tests.clusters import Cluster, cluster


@pytest.fixture(scope="package")
def two_nodes() -> Iterator[Cluster]:
    with cluster(*NODES) as one:
        yield one
