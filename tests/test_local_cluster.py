"""Where a local cluster lives: nobody else may write there."""

import os
import stat
from pathlib import Path

import pytest

from scpo_ray import local_cluster
from scpo_ray.config.cluster import LocalClusterConfig
from scpo_ray.errors import ClusterError, ConfigError
from scpo_ray.local_cluster import free_port, read_shape

ROOT = Path(__file__).parents[1]


@pytest.fixture
def shape(tmp_path) -> LocalClusterConfig:
    return read_shape(str(ROOT / "clusters/local.yaml")).model_copy(
        update={"folder": str(tmp_path / "cluster"), "port": free_port(), "dashboard_port": free_port()}
    )


def test_its_folder_is_closed_before_anything_starts(shape, tmp_path):
    Path(shape.folder).mkdir(mode=0o777)
    with pytest.raises(ClusterError, match="no authentication token"):
        local_cluster.up(shape, environment=os.environ | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "no-such-file")})
    assert stat.S_IMODE(os.stat(shape.folder).st_mode) == 0o700


def test_a_link_is_refused(shape, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Path(shape.folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ClusterError, match="a link, or another user's"):
        local_cluster.up(shape)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_folder_is_refused(shape):
    Path(shape.folder).mkdir()
    os.chown(shape.folder, 65534, 65534)
    with pytest.raises(ClusterError, match="another user's, who could change what runs here"):
        local_cluster.up(shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"nodes: \xff", r"shape.yaml: cannot be read as YAML \("),
        (b"", r"shape.yaml: holds no keys; write `nodes:`"),
        (b"- a", r"shape.yaml: holds no keys"),
        (b"nodes: []", r"shape.yaml: nodes: Tuple should have at least 1 item"),
        (b"nodes: [{name: a}]\nport: 7000\ndashboard_port: 7000", "yaml: port and dashboard_port are both 7000"),
        (b"nodes: [{name: a, resources: {CPU: 2}}]", r"nodes.0.resources: CPU is Ray's own; use num_cpus"),
        (b"nodes: [{name: a, resources: {x: yes}}]", r"nodes.0.resources.x: Input should be a valid number"),
        (b"nodes: [{name: a}]\nport: 7000\nnodes: [{name: b}]", r"shape.yaml:3: nodes is given a second time"),
        (b"folder: ray\nnodes: [{name: a}]", r"folder: ray depends on where the command is given; write the whole"),
        (b"nodes: [{name: a, resources: {x: -3}}]", r"nodes.0.resources: x: -3.0 is no amount"),
    ],
)
def test_shapes_that_are_none(tmp_path, text, message):
    (tmp_path / "shape.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read_shape(str(tmp_path / "shape.yaml"))


@pytest.mark.parametrize("do", [local_cluster.up, local_cluster.down])
def test_damaged_notes_and_a_folder_that_is_none(shape, do, tmp_path):
    Path(shape.folder).mkdir()
    (Path(shape.folder) / "nodes.json").write_text("{")
    with pytest.raises(ClusterError, match=r"nodes.json: damaged, .*; end them \(pkill -f temp-dir=.*\) and delete"):
        do(shape)


def test_a_folder_that_cannot_be_made(shape, tmp_path):
    (tmp_path / "file").write_text("")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file/in", "Not a directory")):
        with pytest.raises(ClusterError, match=rf"{folder}: cannot be made \({reason}\); give another `folder`"):
            local_cluster.up(shape.model_copy(update={"folder": str(folder)}))
        assert local_cluster.down(shape.model_copy(update={"folder": str(folder)})) == []


def test_a_node_that_ends_at_once(shape):
    """Ray refuses so small a memory."""
    small = shape.model_copy(update={"object_store_mb": 1})
    with pytest.raises(ClusterError, match=r"node head ended; see .*head.log; `scpo_ray cluster down` ends the others"):
        local_cluster.up(small)
    assert local_cluster.down(small) == []
