"""τ and β found from the data of a run: each community's own, in the ledger, in the manifest, and the same after a rerun."""

import numpy as np
import pytest

from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config
from scpo_ray.core.calibration import fit_temperature
from scpo_ray.core.selection_rule import automatic
from scpo_ray.errors import ArtifactError, DataError
from scpo_ray.records import SCORES, table
from scpo_ray.stages import prepare, recipes, select, train_global
from tests.prism_files import write_jsonl

PLACES = {"Here": 1.0, "Near": 0.5, "Far": 2.0}
"""Community -> how large its margins are, beside those of Here, the majority."""


@pytest.fixture
def config(tmp_path, tiny_reward_model) -> Config:
    """Three communities with 600 pairs each; a pair's two responses carry its number."""
    rows = [
        {
            "prompt": f"{place} {n} {n * n} ?",
            "chosen": f"{place} {n} yes",
            "rejected": f"{place} {n} no",
            "community": place,
            "annotator_id": f"{place} {n // 10}",
        }
        for place in PLACES
        for n in range(600)
    ]
    write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = Config(
        run_dir=str(tmp_path / "run"),
        prepare={
            "datasets": ["pair_files"],
            "pair_files": {"paths": [str(tmp_path / "pairs.jsonl")]},
            "majority": ["Here"],
            "validation_fraction": 0.4,
        },
        train_global={"model": str(tiny_reward_model), "epochs": 0},
        select={"agreement_threshold": "auto", "weight_temperature": "auto", "auto_information": 0.7},
    )
    prepare.run(config)
    train_global.run(config)
    write_scores(config)
    return config


def write_scores(config: Config, *, always_right: bool = False) -> None:
    """Margins of size |N(0, 1)| times the place's; the annotator agrees with a probability that is right at T = 0.7."""
    directory = RunDirectory(config.run_dir)
    rows = []
    for response in directory.read_table("prepared/responses.parquet").to_pylist():
        place, number, word = response["response"].split()
        random = np.random.default_rng([list(PLACES).index(place), int(number)])
        size = abs(random.normal()) * PLACES[place]
        agrees = random.random() < 1 / (1 + np.exp(-size / 0.7)) or always_right
        reward = 0.25 + (size if agrees else -size) * (word == "yes")
        rows.append({"response_id": response["response_id"], "model_hash": "by hand", "reward": np.float32(reward)})
        rows[-1] |= {"num_tokens": 1, "truncated": False}
    with recipes.scores(config, directory).making(directory) as draft:
        draft.write_table("scores.parquet", table(rows, SCORES))


def with_select(config: Config, **changes: object) -> Config:
    given = config.model_dump(exclude_unset=True)
    return Config(**{**given, "select": given["select"] | changes})


def constants_of(config: Config) -> dict[str, dict]:
    return {name: row["constants"] for name, row in select.run(config)[0].statistics["communities"].items()}


def test_every_community_has_its_own_by_the_rule(config):
    found = constants_of(config)
    ledger = RunDirectory(config.run_dir).read_table("decisions/filter_weight/decisions.parquet").to_pandas()
    margins = (ledger.global_reward_chosen.astype(np.float64) - ledger.global_reward_rejected).to_numpy()
    is_fitted_on = ((ledger.community == "Here") & (ledger.split == "validation")).to_numpy()
    temperature = fit_temperature(margins[is_fitted_on])
    for place in PLACES:
        of_train = ((ledger.community == place) & (ledger.split == "train")).to_numpy()
        tau, beta = automatic(
            np.abs(margins[of_train]) / temperature, least_information=0.7, agrees=(margins[of_train] > 0).astype(float)
        )
        assert found[place]["weight_temperature"] == pytest.approx(beta * temperature, rel=1e-4)
        assert found[place]["information"] >= 0.7 and found[place]["bias"] == pytest.approx(0, abs=1e-6)
        is_kept = ledger.kept[of_train].to_numpy()
        assert np.array_equal(is_kept, margins[of_train] / temperature < np.log(tau / (1 - tau)))
        disagrees = of_train & (margins < 0)
        expected = np.exp(margins[disagrees] / (beta * temperature))
        assert ledger.weight[disagrees].to_numpy() == pytest.approx(expected, rel=1e-4)
    taus = {place: row["agreement_threshold"] for place, row in found.items()}
    assert taus["Near"] < taus["Here"] < taus["Far"], "the surer the global model, the higher"


def test_labels_of_training_pairs_alone_have_a_part_in_it(config):
    """Turned labels of validation and test pairs change nothing; with every other training pair turned, weights are lighter."""
    before = constants_of(config)
    directory = RunDirectory(config.run_dir)
    pairs, scores = select.load_inputs(directory, config.select.arms[0])

    def beta_with_turned(splits: set[str]) -> float:
        rows = pairs.to_pylist()
        for row in rows[::2]:
            if row["community"] == "Far" and row["split"] in splits:
                row["chosen_id"], row["rejected_id"] = row["rejected_id"], row["chosen_id"]
        turned = table(rows, pairs.schema)
        _, found = select.decide(turned, scores, config, config.select.arms[0], majority=["Here"])
        assert found["Near"].weight_temperature == before["Near"]["weight_temperature"]
        return found["Far"].weight_temperature

    assert beta_with_turned({"validation", "test"}) == before["Far"]["weight_temperature"]
    assert beta_with_turned({"train"}) < 0.97 * before["Far"]["weight_temperature"]


def test_calibration_changes_what_a_number_means(config):
    plain = with_select(config, agreement_threshold=0.7, weight_temperature=1.1)
    select.run(plain)
    ledger = RunDirectory(config.run_dir).read_table("decisions/filter_weight/decisions.parquet").to_pandas()
    calibrated = with_select(config, agreement_threshold=0.7, weight_temperature=1.1, calibrate=True)
    with pytest.raises(ArtifactError, match=r"made with select\.calibrate = false, this config has true"):
        select.run(calibrated)
    found = constants_of(calibrated.model_copy(update={"rebuild": True}))
    after = RunDirectory(config.run_dir).read_table("decisions/filter_weight/decisions.parquet").to_pandas()
    temperature = found["Far"]["margin_temperature"]
    assert temperature == pytest.approx(0.7, rel=0.5) and found["Near"]["margin_temperature"] == temperature
    margins = (ledger.global_reward_chosen - ledger.global_reward_rejected).to_numpy()
    assert after.agreement.to_numpy() == pytest.approx(1 / (1 + np.exp(-margins / temperature)), rel=1e-5)
    assert np.array_equal(after.kept, after.agreement < 0.7) and not np.array_equal(after.kept, ledger.kept)
    light = after.kept & (margins < 0)
    assert after.weight[light].to_numpy() == pytest.approx(np.exp(margins[light] / temperature / 1.1), rel=1e-5)


def test_a_global_model_that_is_always_right_tells_no_temperature(config):
    write_scores(config, always_right=True)
    with pytest.raises(DataError, match="it gets all of them right"):
        select.run(config)
    assert RunDirectory(config.run_dir).find("decisions/filter_weight") is None
