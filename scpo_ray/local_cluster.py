"""A Ray cluster of several nodes on one machine, with token authentication on: what runs there runs on a real one.

Every node is a process session of its own, so that it can be ended, or killed, as a machine can.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import httpx
import psutil
import yaml
from pydantic import ValidationError

from scpo_ray.cli import refuse_repeated_keys
from scpo_ray.config.cluster import LocalClusterConfig, NodeShape
from scpo_ray.errors import ClusterError, ConfigError

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 3.0
_STATE = "nodes.json"
_RAY = Path(sys.executable).with_name("ray")


def read_shape(file: str) -> LocalClusterConfig:
    """From YAML.

    Raises:
        ConfigError: it cannot be read, or a value is not legal.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
        refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader), file)
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: holds no keys; write `nodes:` and what clusters/local.yaml has")
    try:
        return LocalClusterConfig.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [".".join(map(str, first["loc"]))] if first["loc"] else []
        raise ConfigError(": ".join([file, *place, first["msg"].removeprefix("Value error, ")])) from None


def up(config: LocalClusterConfig, *, environment: Mapping[str, str] = os.environ) -> str:
    """Start every node, and wait until all have joined. Every process of the cluster asks for the token.

    Args:
        environment: of every process of the cluster.

    Returns:
        The job server's address.

    Raises:
        ClusterError: it runs already, its folder is another user's, a port is taken, or a node does not join.
    """
    folder = Path(config.folder)
    if any(sessions(folder)):
        raise ClusterError(f"{folder}: its cluster runs already; end it first (scpo_ray cluster down)")
    for port in (config.port, config.dashboard_port):
        _check_free(port)
    _make_private(folder)
    token = _token(environment)
    for number, node in enumerate(config.nodes):
        where = _head(config) if number == 0 else (f"--address=127.0.0.1:{config.port}",)
        _start(folder, node, environment, *where, f"--object-store-memory={config.object_store_mb * 1_000_000}")
        await_nodes(config, token, number + 1)
    return address_of(config)


def down(config: LocalClusterConfig) -> list[str]:
    """End every process of the cluster.

    Returns:
        Names of the nodes that ran.
    """
    folder = Path(config.folder)
    ended = [name for name, _ in sessions(folder)]
    for name in reversed(ended):
        end_node(config, name)
    if (folder / _STATE).is_file():
        (folder / _STATE).unlink()
    return ended


def end_node(config: LocalClusterConfig, name: str, *, at_once: bool = False) -> None:
    """End a node and all that runs on it.

    Args:
        at_once: as if its plug were pulled (SIGKILL); else its processes may say goodbye.
    """
    for _, session in (found for found in sessions(Path(config.folder)) if found[0] == name):
        processes = list(_with_children(processes_of(session)))
        for process in processes if not at_once else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, left = psutil.wait_procs(processes, timeout=0 if at_once else _END_TIMEOUT_S)
        while left:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=_END_TIMEOUT_S)
            left = list(processes_of(session))


def start_node(config: LocalClusterConfig, name: str, *, environment: Mapping[str, str] = os.environ) -> None:
    """Start a node of the shape again, as a cloud does with one that it took away; it joins in its own time."""
    (node,) = (node for node in config.nodes if node.name == name)
    memory = f"--object-store-memory={config.object_store_mb * 1_000_000}"
    _start(Path(config.folder), node, environment, f"--address=127.0.0.1:{config.port}", memory)


def processes_of(session: int) -> Iterator[psutil.Process]:
    """Everything that a node has started and that lives."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _with_children(processes: Iterable[psutil.Process]) -> set[psutil.Process]:
    """A job's own process has a session of its own."""
    found = set(processes)
    for process in list(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(process.children(recursive=True))
    return found


def sessions(folder: Path) -> Iterator[tuple[str, int]]:
    """Node name and process session, of the nodes that live."""
    for name, (session, born, _) in _read_state(folder).items():
        first = next(iter(processes_of(session)), None)
        if first is not None and first.create_time() >= born:  # else the number is another's by now
            yield name, session


def free_port() -> int:
    """Of this machine, out of those that neither Linux hands out by itself (32768 and above) nor Ray to its workers (10002 to
    19999): else somebody might get it before it is used."""
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as one:
            try:
                one.bind(("", port))
            except OSError:
                continue
            return port


def _head(config: LocalClusterConfig) -> tuple[str, ...]:
    return (
        "--head",
        f"--port={config.port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={config.dashboard_port}",
        f"--ray-client-server-port={free_port()}",
        "--disable-usage-stats",
    )


def _start(folder: Path, node: NodeShape, environment: Mapping[str, str], *arguments: str) -> None:
    """In the background; its process session and its agent's port are noted."""
    shape = (f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}", f"--resources={json.dumps(node.resources)}")
    path = f"{_RAY.parent}{os.pathsep}{environment.get('PATH', '')}"  # a job's `python` is this one
    ports = {name: free_port() for name in _AGENT_PORTS}  # the default ones are of the first node on a machine alone
    with (folder / f"{node.name}.log").open("ab") as log:
        started = subprocess.Popen(
            # A folder of its own: nodes that share one delete each other's copies of a job's working directory.
            [
                str(_RAY),
                "start",
                *arguments,
                *shape,
                f"--temp-dir={folder / node.name}",
                *(f"--{name}={port}" for name, port in ports.items()),
                "--block",
            ],
            env={**environment, "RAY_AUTH_MODE": "token", "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    born = psutil.Process(started.pid).create_time()
    state = _read_state(folder) | {node.name: [started.pid, born, ports[_AGENT_PORTS[0]]]}
    draft = folder / f".{_STATE}"
    draft.write_text(json.dumps(state))
    draft.replace(folder / _STATE)  # whole, whenever this process dies


_AGENT_PORTS = (
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
)


def address_of(config: LocalClusterConfig) -> str:
    """Of the job server."""
    return f"http://127.0.0.1:{config.dashboard_port}"


def await_nodes(config: LocalClusterConfig, token: str, number: int) -> None:
    """Until so many nodes have joined, and the agents that start jobs on them listen.

    Raises:
        ClusterError: one of them ended, or took too long.
    """
    folder, end = Path(config.folder), time.monotonic() + START_TIMEOUT_S
    while _num_alive(address_of(config), token) < number or not all(map(_listens, agent_ports(config).values())):
        is_late, has_ended = time.monotonic() > end, len(list(sessions(folder))) < number
        if is_late or has_ended:
            name = list(_read_state(folder))[-1]
            raise ClusterError(
                f"node {name} {'ended' if has_ended else f'did not join within {START_TIMEOUT_S:g} s'}; see "
                f"{folder / name}.log; `scpo_ray cluster down` ends the others"
            )
        time.sleep(0.2)


def _num_alive(address: str, token: str) -> int:
    """0 while the dashboard does not answer."""
    try:
        answer = httpx.get(f"{address}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    except httpx.TransportError:
        return 0
    if answer.status_code != httpx.codes.OK:
        return 0
    return sum(node["raylet"].get("state") == "ALIVE" for node in answer.json()["data"]["summary"])


def _token(environment: Mapping[str, str]) -> str:
    """Ray's (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token), made and kept from other users where there is none."""
    made = subprocess.run(
        [str(_RAY), "get-auth-token", "--generate"], check=False, capture_output=True, text=True, env=dict(environment)
    )
    if made.returncode != 0:
        raise ClusterError(f"no authentication token: {made.stderr.strip().splitlines()[-1]}")
    kept = Path.home() / ".ray/auth_token"
    if kept.is_file():
        kept.chmod(0o600)
    return made.stdout.strip()


def _make_private(folder: Path) -> None:
    """Make it, for this user alone: what Ray unpacks and runs in it, others may write."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(f"{folder}: cannot be made ({error.strerror}); give another `folder`") from None
    if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
        raise ClusterError(
            f"{folder}: a link, or another user's, who could change what runs here; give another `folder`"
        )
    folder.chmod(0o700)


def _read_state(folder: Path) -> dict[str, list]:
    """Node name -> process session, when its first process was born, its agent's port.

    Raises:
        ClusterError: the file is damaged.
    """
    file = folder / _STATE
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError):
        raise ClusterError(
            f"{file}: damaged, so that its nodes are not known; end them (pkill -f temp-dir={folder}) and delete the file"
        ) from None


def agent_ports(config: LocalClusterConfig) -> dict[str, int]:
    """Node name -> port of its agent, which answers health checks and starts jobs."""
    return {name: port for name, (_, _, port) in _read_state(Path(config.folder)).items()}


def _check_free(port: int) -> None:
    if _listens(port):
        raise ClusterError(f"port {port} is taken; end what listens there, or give another in the cluster's YAML")


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
