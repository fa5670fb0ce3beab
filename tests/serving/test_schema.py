"""The OpenAPI description against the real server: whatever it allows is answered or refused, never a 500."""

import schemathesis
from hypothesis import HealthCheck, Phase, settings

schema = schemathesis.pytest.from_fixture("api_schema")

import pytest  # noqa: E402


@pytest.fixture(scope="module")
def api_schema(adapters_url):
    return schemathesis.openapi.from_url(f"{adapters_url}/openapi.json", base_url=adapters_url)


@schema.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_nothing_in_the_description_makes_the_server_fail(case, service_token):
    answer = case.call(headers={"Authorization": f"Bearer {service_token}"})
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()) == {"error"}
