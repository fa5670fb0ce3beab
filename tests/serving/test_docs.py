"""The examples of docs/serving.md, as they stand there."""

import re
import shlex
import subprocess
from pathlib import Path

from tests.serving.conftest import TOKEN

DOCS = (Path(__file__).parents[2] / "docs/serving.md").read_text()


def test_the_python_example(service_url, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    exec(example.replace("http://127.0.0.1:8000", service_url).replace('"..."', repr(TOKEN)), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["Brevia", "Calder Isles", "Atlas"]
    assert all(re.fullmatch(r".+: \d+% prefer A", line) for line in lines)


def test_the_curl_example(service_url, tokens_file):
    (example,) = re.findall(r"^(curl .*?)\n```", DOCS, re.DOTALL | re.MULTILINE)
    command = (
        example.replace("\\\n", " ").replace("http://127.0.0.1:8000", service_url).replace("$(cat tokens.txt)", TOKEN)
    )
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    assert '"community":"Brevia"' in done.stdout and '"scores":[' in done.stdout


def test_every_path_and_setting_that_is_named_exists(service_url):
    import httpx

    from scpo_ray.config.serving import ServeConfig

    paths = httpx.get(f"{service_url}/openapi.json").json()["paths"]
    for path in ("/v1/score", "/v1/compare", "/v1/communities", "/healthz", "/readyz", "/metrics", "/classify"):
        assert path in paths and path in DOCS
    for name in ("max_queued", "deadline_s", "max_body_bytes", "body_timeout_s", "cors_origins", "max_loaded_models"):
        assert name in ServeConfig.model_fields and f"`{name}" in DOCS
