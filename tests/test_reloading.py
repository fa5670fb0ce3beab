"""Another checkpoint's weights in a scorer that is there already: what building it anew gives."""

import json
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from scpo_ray import models, reloading
from scpo_ray.config import FormatConfig, ModelConfig
from scpo_ray.errors import ModelError
from scpo_ray.reloading import MappedWeights, ReplaceableWeights, kind_of
from scpo_ray.scoring import RewardScorer
from tests.small_models import deberta

TEXT = "what do you think of the new harbour honestly i like it a lot because there is more room for all boats"
WORDS = TEXT.split()
CONTEXT = [{"role": "user", "content": "what do you think of the new harbour ?"}]
RESPONSES = [" ".join(WORDS[start : start + length]) for start in range(6) for length in (1, 5, 13)]
FORMAT = FormatConfig(max_tokens=32)


def made(architecture: str, seed: int, **settings: int) -> models.RewardModel:
    """Weights so large that no two models agree by chance."""
    if architecture == "deberta":
        found = deberta(TEXT, seed=seed)
    else:
        config = ModelConfig.model_validate({"architecture": architecture} | settings)
        found = models.make(config, texts=[TEXT], max_tokens=32, seed=seed)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.mul_(5)
    return found


def written(folder: Path, architecture: str = "bert", *, seed: int, **settings: int) -> Path:
    found = made(architecture, seed, **settings)
    models.save(found.model, found.tokenizer, folder)
    return folder


def scorer_of(folder: Path) -> RewardScorer:
    """On a CPU, where weights are mapped."""
    return RewardScorer(
        folder, format_config=FORMAT, tokens_per_batch=128, precision="float32", safetensors_only=True, device="cpu"
    )


def rewards(scorer: RewardScorer) -> np.ndarray:
    return scorer.score([CONTEXT] * len(RESPONSES), RESPONSES).rewards


@pytest.mark.parametrize("architecture", ["bert", "llama", "deberta"])
def test_a_scorer_becomes_another_model_and_the_first_again(tmp_path, architecture):
    folders = [written(tmp_path / str(seed), architecture, seed=seed) for seed in range(2)]
    expected = [rewards(scorer_of(folder)) for folder in folders]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    scorer = scorer_of(folders[0])
    for place in (1, 0, 1):
        assert scorer.becomes(folders[place])
        np.testing.assert_array_equal(rewards(scorer), expected[place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_copied_leave_the_models_own_memory_in_use(tmp_path, dtype):
    """As on a GPU, where there is no room for two."""
    folders = [written(tmp_path / str(seed), seed=seed) for seed in range(2)]
    save_weights(folders[1], lambda weights: {name: tensor.to(dtype) for name, tensor in weights.items()})
    scorer = scorer_of(folders[0])
    places = [parameter.data_ptr() for parameter in scorer._model.parameters()]
    assert ReplaceableWeights(scorer._model).take(folders[1], None)
    other = scorer_of(folders[1])
    for own, expected in zip(scorer._model.parameters(), other._model.parameters(), strict=True):
        assert torch.equal(own, expected)
    # not the last bit: kernels depend on how the memory of a weight is aligned, here a file's and there the heap's
    np.testing.assert_allclose(rewards(scorer), rewards(other), atol=1e-6)
    assert [parameter.data_ptr() for parameter in scorer._model.parameters()] == places


def test_weights_in_several_files(tmp_path):
    scorer = scorer_of(written(tmp_path / "whole", seed=0))
    found = made("bert", 1)
    found.model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    found.tokenizer.save_pretrained(tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert scorer.becomes(tmp_path / "parts")
    np.testing.assert_array_equal(rewards(scorer), rewards(scorer_of(tmp_path / "parts")))


def test_weights_in_half_precision_are_computed_in_float32(tmp_path):
    scorer, other = scorer_of(written(tmp_path / "a", seed=0)), written(tmp_path / "b", seed=1)
    save_weights(other, lambda weights: {name: tensor.bfloat16() for name, tensor in weights.items()})
    assert scorer.becomes(other)
    np.testing.assert_array_equal(rewards(scorer), rewards(scorer_of(other)))


def save_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def of_another_size(folder: Path) -> None:
    shutil.rmtree(folder)
    written(folder, seed=1, num_layers=1)


def of_another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("harbour", "harbor"))


def of_another_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n")


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def of_other_settings(folder: Path) -> None:
    """The same tensors, computed otherwise."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_norm_eps": 0.5}))


def without_a_tensor(folder: Path) -> None:
    save_weights(folder, lambda weights: dict(list(weights.items())[1:]))


def with_a_tensor_more(folder: Path) -> None:
    save_weights(folder, lambda weights: weights | {"another": torch.zeros(3)})


def with_a_tensor_of_another_shape(folder: Path) -> None:
    save_weights(folder, lambda weights: weights | {"classifier.bias": torch.zeros(2)})


def pickled(folder: Path) -> None:
    path = folder / "model.safetensors"
    torch.save(load_file(path), folder / "pytorch_model.bin")
    path.unlink()


@pytest.mark.parametrize(
    "change",
    [
        of_another_size,
        of_another_tokenizer,
        of_another_vocabulary,
        with_an_adapter,
        of_other_settings,
        without_a_tensor,
        with_a_tensor_more,
        with_a_tensor_of_another_shape,
        pickled,
    ],
)
def test_another_kind_of_model_is_not_taken_and_nothing_changes(tmp_path, change):
    scorer, other = scorer_of(written(tmp_path / "a", seed=0)), written(tmp_path / "b", seed=1)
    before = rewards(scorer)
    change(other)
    assert not scorer.becomes(other)
    np.testing.assert_array_equal(rewards(scorer), before)


def test_files_that_stay_as_they_are_are_read_once_and_others_anew(tmp_path, monkeypatch):
    folder = written(tmp_path / "a", seed=0)
    path = folder / "tokenizer.json"
    read = []
    whole = Path.read_bytes

    def noted(self):
        read.append(self.name)
        return whole(self)

    monkeypatch.setattr(Path, "read_bytes", noted)
    first = kind_of(folder)
    path.write_text(path.read_text().replace("harbour", "harbouR"))  # of the same length, and perhaps in the same tick
    changed = kind_of(folder)
    assert changed != first
    path.write_text(path.read_text().replace("harbouR", "harbour"))
    assert kind_of(folder) == first
    time.sleep(2.1)
    read.clear()
    assert kind_of(folder) == first
    assert "tokenizer.json" in read
    read.clear()
    assert kind_of(folder) == first and read == []
    path.write_text(path.read_text().replace("harbour", "harbouR"))
    assert kind_of(folder) == changed and read == ["tokenizer.json"]


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Folders of weights that were read from their files, in order."""
    found = []

    def noted(path):
        found.append(path.parent.name)
        return load_file(path)

    monkeypatch.setattr(reloading, "load_file", noted)
    return found


def test_weights_stay_mapped_and_are_read_once(tmp_path, read):
    folders = [written(tmp_path / str(seed), seed=seed) for seed in range(3)]
    expected = [rewards(scorer_of(folder)) for folder in folders]
    mapped, scorers = MappedWeights(10**9), [scorer_of(folders[0]), scorer_of(folders[0])]
    for place in (1, 2, 0, 1, 0, 2):
        for scorer in scorers:
            assert scorer.becomes(folders[place], mapped=mapped)
        scorers[0].close()  # what others compute with stays as it is
        scorers[0] = scorer_of(folders[0])
        np.testing.assert_array_equal(rewards(scorers[1]), expected[place])
    assert read == ["1", "2", "0"]
    assert mapped.num_bytes == sum((folder / "model.safetensors").stat().st_size for folder in folders)


def test_weights_that_were_replaced_are_read_anew(tmp_path, read):
    folders = [written(tmp_path / str(seed), seed=seed) for seed in range(3)]
    mapped, scorer = MappedWeights(10**9), scorer_of(folders[0])
    assert scorer.becomes(folders[1], mapped=mapped)
    size = mapped.num_bytes
    shutil.copyfile(folders[2] / "model.safetensors", folders[2] / "copy")
    (folders[2] / "copy").replace(folders[1] / "model.safetensors")
    assert scorer.becomes(folders[1], mapped=mapped)
    np.testing.assert_array_equal(rewards(scorer), rewards(scorer_of(folders[2])))
    assert read == ["1", "1"] and mapped.num_bytes == size
    (folders[1] / "model.safetensors").unlink()
    assert not scorer.becomes(folders[1], mapped=mapped)


def test_what_was_read_longest_ago_is_mapped_no_more_where_there_is_no_room(tmp_path, read):
    folders = [written(tmp_path / str(seed), seed=seed) for seed in range(3)]
    size = (folders[0] / "model.safetensors").stat().st_size
    mapped = MappedWeights(max_bytes=2 * size)
    for place in (0, 1, 0, 2, 0, 1):
        mapped.read(folders[place])
        assert mapped.num_bytes <= 2 * size
    assert read == ["0", "1", "2", "1"]
    mapped.read(written(tmp_path / "large", seed=0, num_layers=8))
    for place in (0, 1):
        mapped.read(folders[place])
    assert read == ["0", "1", "2", "1", "large"], "what cannot be kept takes nobody's place"


def test_a_model_that_keeps_frequencies_of_its_last_pass_is_not_put_to_use_again(tmp_path):
    folders = []
    for seed in range(2):
        found = made("llama", seed)
        found.model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
        models.save(found.model, found.tokenizer, tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    assert not scorer_of(folders[0]).becomes(folders[1])


@pytest.mark.parametrize("damage", ["cut", "index", "gone"])
def test_a_damaged_folder_is_one_line_and_nothing_changes(tmp_path, damage):
    scorer, other = scorer_of(written(tmp_path / "a", seed=0)), written(tmp_path / "b", seed=1)
    before = rewards(scorer)
    path = other / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "index":
        path.unlink()
        (other / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    else:
        shutil.rmtree(other)
    with pytest.raises(ModelError, match=r"b: cannot be (loaded as a reward model|read)") as raised:
        scorer.becomes(other)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(rewards(scorer), before)


def test_a_closed_scorer_keeps_no_weights_although_it_is_not_collected(tmp_path):
    scorer = scorer_of(written(tmp_path / "a", seed=0))
    tensors = [weakref.ref(parameter) for parameter in scorer._model.parameters()]

    def num_kept() -> int:
        found = [tensor() for tensor in tensors]
        return sum(tensor.nbytes for tensor in found if tensor is not None and tensor.device.type != "meta")

    assert num_kept() > 10_000
    scorer.close()
    assert num_kept() == 0
