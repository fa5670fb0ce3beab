"""Cluster definitions: against the schemas of those who read them, and against each other."""

import json
import os
import re
import shlex
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import ray.autoscaler
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from scpo_ray import submission
from scpo_ray.errors import ConfigError
from scpo_ray.local_cluster import read_shape
from scpo_ray.nodes import AUTOSCALING
from scpo_ray.serving.settings import settings_of

ROOT = Path(__file__).parents[1]
KUBERAY = ROOT / "clusters/kuberay"
MANIFESTS = sorted(KUBERAY.glob("*.yaml"))
KUBERNETES = "1.33"


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


# What KubeRay's types take (ray-operator/apis/ray/v1/*_types.go of releases 1.5 and 1.6), as far as these files use it, and no
# more: what passes here passes the published CRDs (ray-operator/config/crd/bases, version v1), whose names, types, enums and
# required fields were read beside it (docs/clusters.md). Those ask for less: no minimum, no enum of services or of ways to
# submit, and of a worker group only its name, limits and template. Pods are Kubernetes' own.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}


def closed(required: tuple[str, ...] = (), **properties: object) -> dict:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=closed(("mode",), mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    headGroupSpec=closed(
        ("template", "rayStartParams"),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=TEXTS,
        template={"type": "object"},
    ),
    workerGroupSpecs={
        "type": "array",
        "items": closed(
            ("groupName", "template", "rayStartParams", "minReplicas", "maxReplicas"),
            groupName={"type": "string"},
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template={"type": "object"},
        ),
    },
)
SPECS = {
    "RayCluster": CLUSTER,
    "RayJob": closed(
        ("rayClusterSpec", "entrypoint"),
        entrypoint={"type": "string"},
        entrypointNumCpus={"type": "number"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        metadata=TEXTS,
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": closed(
        ("serveConfigV2", "rayClusterConfig"), serveConfigV2={"type": "string"}, rayClusterConfig=CLUSTER
    ),
}


def clusters_in(document: dict) -> list[dict]:
    """The cluster that a manifest of KubeRay's asks for."""
    spec = document["spec"]
    return [found for found in (spec.get("rayClusterSpec"), spec.get("rayClusterConfig")) if found] or [spec]


def groups(cluster: dict) -> list[dict]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


RAY_MANIFESTS = [
    pytest.param(document, id=document["kind"])
    for path in MANIFESTS
    for document in documents(path)
    if document["apiVersion"] == "ray.io/v1"
]


def test_there_is_a_manifest_of_every_kind():
    assert {document["kind"] for path in MANIFESTS for document in documents(path)} == {
        *SPECS,
        "NetworkPolicy",
        "PersistentVolumeClaim",
    }


@pytest.mark.parametrize("document", RAY_MANIFESTS)
def test_fields_are_those_that_kuberay_knows(document):
    jsonschema.validate(document["spec"], SPECS[document["kind"]])


def published(folder: Path) -> dict[str, dict]:
    """Kind -> schema of version v1 in a folder of KubeRay's CRDs, in which fields without a name are refused, not dropped."""
    schemas = {}
    for path in folder.glob("*.yaml"):
        for crd in documents(path):
            (schema,) = (
                version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"] if version["name"] == "v1"
            )
            schemas[crd["spec"]["names"]["kind"]] = without_other_fields(schema)
    return schemas


def without_other_fields(schema: dict) -> dict:
    found = {
        key: {name: without_other_fields(one) for name, one in value.items()}
        if key == "properties"
        else without_other_fields(value)
        if key in ("items", "additionalProperties") and isinstance(value, dict)
        else value
        for key, value in schema.items()
    }
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.skipif("SCPO_KUBERAY_CRDS" not in os.environ, reason="SCPO_KUBERAY_CRDS names no folder of KubeRay's CRDs")
@pytest.mark.parametrize("document", RAY_MANIFESTS)
def test_the_published_schemas_take_them(document):
    jsonschema.validate(document, published(Path(os.environ["SCPO_KUBERAY_CRDS"]))[document["kind"]])


def test_a_published_schema_would_notice_a_wrong_field(tmp_path):
    """A schema in the form of a CRD's, of what the first of these manifests has."""
    own = {key: {"type": "string"} for key in ("apiVersion", "kind")} | {"metadata": {"type": "object"}}
    head = {"type": "object", "properties": {"serviceType": {"type": "string"}, "template": {"type": "object"}}}
    names = ("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "workerGroupSpecs")
    spec = {"type": "object", "properties": {name: {} for name in names} | {"headGroupSpec": head}}
    head["properties"]["rayStartParams"] = {"type": "object", "additionalProperties": {"type": "string"}}
    schema = {"type": "object", "properties": own | {"spec": spec}}
    versions = [{"name": "v1alpha1", "schema": {}}, {"name": "v1", "schema": {"openAPIV3Schema": schema}}]
    crd = {"kind": "CustomResourceDefinition", "spec": {"names": {"kind": "RayCluster"}, "versions": versions}}
    (tmp_path / "ray.io_rayclusters.yaml").write_text(yaml.safe_dump(crd))
    (document,) = documents(KUBERAY / "raycluster.yaml")
    jsonschema.validate(document, published(tmp_path)["RayCluster"])
    for place, name, value, message in (
        (document["spec"], "headGroup", {}, "'headGroup' was unexpected"),
        (document["spec"]["headGroupSpec"], "serviceTyp", "ClusterIP", "'serviceTyp' was unexpected"),
        (document["spec"]["headGroupSpec"]["rayStartParams"], "num-cpus", 0, "0 is not of type 'string'"),
    ):
        place[name] = value
        with pytest.raises(jsonschema.ValidationError, match=message):
            jsonschema.validate(document, published(tmp_path)["RayCluster"])
        del place[name]


@pytest.mark.parametrize("document", RAY_MANIFESTS)
def test_pods_are_those_that_kubernetes_knows(document):
    for cluster in clusters_in(document):
        for group in groups(cluster):
            template = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": "x"},
                "template": group["template"],
            }
            kubernetes_validate.validate(template, KUBERNETES, strict=True)


def test_a_wrong_pod_would_be_noticed():
    (document,) = documents(KUBERAY / "raycluster.yaml")
    template = document["spec"]["headGroupSpec"]["template"]
    template["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template},
            KUBERNETES,
            strict=True,
        )


@pytest.mark.parametrize(
    "path", [KUBERAY / "network-policy.yaml", KUBERAY / "storage.yaml"], ids=lambda path: path.stem
)
def test_plain_objects_are_those_that_kubernetes_knows(path):
    for document in documents(path):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", RAY_MANIFESTS)
def test_every_pod_is_closed_limited_and_watched(document):
    policy = documents(KUBERAY / "network-policy.yaml")[0]["spec"]["podSelector"]["matchLabels"]
    (claim,) = documents(KUBERAY / "storage.yaml")
    for cluster in clusters_in(document):
        assert cluster["authOptions"]["mode"] == "token"
        for group in groups(cluster):
            pod = group["template"]
            assert policy.items() <= pod["metadata"]["labels"].items()
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
            (container,) = pod["spec"]["containers"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {"livenessProbe", "readinessProbe"} <= set(container)
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            claims = [
                volume["persistentVolumeClaim"]["claimName"]
                for volume in pod["spec"]["volumes"]
                if "persistentVolumeClaim" in volume
            ]
            assert claims == [claim["metadata"]["name"]]
            if container["resources"]["limits"].get("nvidia.com/gpu"):
                assert pod["spec"]["nodeSelector"] and pod["spec"]["tolerations"]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_jobs_are_told_what_kuberay_may_add(name):
    (document,) = documents(KUBERAY / f"{name}.yaml")
    (cluster,) = clusters_in(document)
    kinds = []
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        has = container["resources"]["limits"]
        gpus = {"GPU": int(has["nvidia.com/gpu"])} if "nvidia.com/gpu" in has else {}
        kinds.append({"nodes": group["maxReplicas"], "CPU": int(has["cpu"])} | gpus)
    for group in groups(cluster):
        (container,) = group["template"]["spec"]["containers"]
        assert json.loads({one["name"]: one["value"] for one in container["env"]}[AUTOSCALING]) == kinds


def test_jobs_are_told_what_the_launcher_may_add():
    config = yaml.safe_load((ROOT / "clusters/gpu.yaml").read_text())
    kinds = [
        {"nodes": kind["max_workers"]} | kind["resources"]
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    (said,) = (option for option in config["docker"]["run_options"] if AUTOSCALING in option)
    name, _, value = shlex.split(said)[1].partition("=")
    kinds[-1]["accelerator_type:H100"] = 1  # for the plan: what a p5 has
    assert name == AUTOSCALING and json.loads(value) == kinds


def test_the_service_deploys_what_the_yaml_for_clusters_deploys():
    (document,) = documents(KUBERAY / "rayservice.yaml")
    inside = yaml.safe_load(document["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(inside)
    outside = yaml.safe_load((ROOT / "serve/reward.yaml").read_text())
    settings_of(inside["applications"][0]["args"])
    for one in (inside, outside):
        del one["http_options"]["host"], one["applications"][0]["args"]
        del one["applications"][0]["deployments"][0]["ray_actor_options"]
    assert inside == outside


def test_the_launchers_file_is_what_ray_up_takes():
    config = yaml.safe_load((ROOT / "clusters/gpu.yaml").read_text())
    jsonschema.validate(config, json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text()))
    validate_config(prepare_config(config))
    assert config["provider"]["type"] == "aws"
    assert all("RAY_AUTH_MODE=token" in line for line in _starts(config))
    assert any("--dashboard-host=127.0.0.1" in line for line in _starts(config))


def test_the_image_has_what_the_launcher_needs_on_the_head():
    """Its autoscaler imports the cloud's client when it starts; without it no worker ever comes."""
    provider = yaml.safe_load((ROOT / "clusters/gpu.yaml").read_text())["provider"]["type"]
    (extras,) = re.findall(r'"\.\[(.+)\]"', (ROOT / "clusters/Dockerfile").read_text())
    assert provider in extras.split(",")
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][provider]
    assert provider == "aws" and any(one.startswith("boto3") for one in named)


def _starts(config: dict) -> list[str]:
    lines = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    return [line for line in lines if "ray start" in line]


def test_all_name_one_image_and_the_release_of_ray_that_is_pinned():
    texts = [path.read_text() for path in [*MANIFESTS, ROOT / "clusters/gpu.yaml", ROOT / "clusters/Dockerfile"]]
    assert len({image for text in texts for image in re.findall(r"registry\.example\.com/\S+", text)}) == 1
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints/cpu.txt").read_text(), re.MULTILINE)
    assert {version for text in texts for version in re.findall(r"rayVersion: (\S+)", text)} == {pinned}


def test_no_secret_stands_in_a_manifest():
    for path in (ROOT / "clusters").rglob("*"):
        if path.is_file():
            assert not re.search(
                r"\b[0-9a-f]{32,}\b|(?i:password|secret_key|token): *[\"']?\w{16,}", path.read_text()
            ), path


def test_what_is_copied_into_the_image_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (.+)$", (ROOT / "clusters/Dockerfile").read_text(), re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignored


def test_the_local_shape_has_a_head_and_a_second_node():
    shape = read_shape(str(ROOT / "clusters/local.yaml"))
    assert [node.name for node in shape.nodes] == ["head", "second"]


def test_what_a_submission_uploads_is_small(tmp_path):
    """Ray's own packing of `--working-dir .`; 1.1 MiB when this was written."""
    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < 5 * 2**20


def test_the_tokens_of_the_readme_are_not_uploaded(tmp_path):
    folder = tmp_path / "project"
    (folder / "jobs").mkdir(parents=True)
    for name in (".gitignore", ".rayignore"):
        (folder / name).write_text((ROOT / name).read_text())
    for name in ("tokens.txt", "jobs/prepare.py"):
        (folder / name).write_text("x")
    create_package(str(folder), tmp_path / "package.zip", include_gitignore=True)
    uploaded = zipfile.ZipFile(tmp_path / "package.zip").namelist()
    assert "jobs/prepare.py" in uploaded and "tokens.txt" not in uploaded
    assert "tokens_file=tokens.txt" in (ROOT / "README.md").read_text()


def test_keys_in_addresses_never_reach_the_list_of_jobs():
    for settings in (
        ["--run_dir", "s3://KEY:SECRET@bucket/run"],
        ["--run_dir=s3://KEY:SECRET@bucket/run"],
        ["--run_dir=s3://KEY:with/slash/SECRET@bucket/run"],
    ):
        with pytest.raises(ConfigError, match="an address holds a user or a key") as raised:
            submission.submit("prepare", settings, address="http://127.0.0.1:1")
        assert "SECRET" not in str(raised.value)
