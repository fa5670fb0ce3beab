"""Where a local cluster lives: nobody else may write there."""

import os
import stat
from pathlib import Path

import pytest

from scpo_ray import local_cluster
from scpo_ray.config.cluster import LocalClusterConfig
from scpo_ray.errors import ClusterError
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
