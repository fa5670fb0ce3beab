"""Where a model lies, and what its files hold; for those who need not load it."""

import hashlib
import importlib.util
from pathlib import Path

from scpo_ray.artifacts import local_copy
from scpo_ray.errors import ModelError

_HASHED_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")


def resolve(address: str) -> Path:
    """The local folder of a model: a folder, `package:NAME/FOLDER` inside an installed package, a remote run's artifact
    (`s3://...`), or a hub name.

    Raises:
        ModelError: there is no such folder, package or hub model.
    """
    if "://" in address:
        return local_copy(address)
    if address.startswith("package:"):
        package, _, inside = address.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"{address}: no installed package {package!r}; pip install it")
        folder = Path(spec.submodule_search_locations[0]) / inside
    else:
        folder = Path(address).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if address.startswith(("package:", "/", ".", "~")) or address.count("/") > 1 or folder.exists():
        raise ModelError(f"{address}: no config.json there; give a transformers folder or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(address, allow_patterns=[f"*{suffix}" for suffix in _HASHED_SUFFIXES]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ModelError(f"{address}: not a local folder, and not to be had from the hub ({reason})") from error


def for_workers(address: str) -> str:
    """A model's address as workers resolve it, whose working directory is another: a local folder by its absolute path."""
    folder = Path(address).expanduser()
    return str(folder.absolute()) if folder.is_dir() else address


def content_hash(folder: Path) -> str:
    """SHA-256 over a model's configuration, tokenizer and weights: equal files, equal scores."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _HASHED_SUFFIXES and path.name not in ("manifest.json", "metrics.json", "training.json"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
