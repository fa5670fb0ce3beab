"""The OpenAPI description against the real server: whatever it allows is answered or refused, never a 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

PATHS = (
    "/v1/score",
    "/v1/compare",
    "/v1/communities",
    "/v1/rewards/{community}/openrlhf",
    "/v1/rewards/{community}/slime",
    "/classify",
    "/healthz",
    "/readyz",
    "/metrics",
)


@pytest.fixture(scope="module")
def operations(adapters_url) -> dict:
    schema = schemathesis.openapi.from_url(f"{adapters_url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.path: operation for operation in found}


def test_every_path_is_described(operations):
    assert set(operations) == set(PATHS)
    for operation in operations.values():
        assert "X-Deadline-S" in {parameter.name for parameter in operation.headers}


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", PATHS)
def test_nothing_makes_the_server_fail(path, mode, operations, adapters_url, service_token):
    """Neither what the description allows nor what it forbids."""
    if mode is GenerationMode.NEGATIVE and not operations[path].body:
        pytest.skip("takes nothing that could be wrong")

    @settings(
        max_examples=40,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def run(case):
        headers = {"Authorization": f"Bearer {service_token}", "X-Deadline-S": "60"}  # shorter ones rightly make 503
        answer = case.call(base_url=adapters_url, headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()) == {"error"}

    run()
