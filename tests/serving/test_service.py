"""What the service answers, over HTTP, on real Ray Serve."""

import itertools
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy.special import expit

from scpo_ray import scoring
from scpo_ray.artifacts import RunDirectory
from scpo_ray.config import Config, FormatConfig
from tests.serving.conftest import responses_of

PROMPT = "what do you think of the new harbour ?"


def served_rewards(ask: httpx.Client, url: str, contexts: list, responses: list) -> dict[str, np.ndarray]:
    """Raw rewards of everything by every community, a request per context."""
    found: dict[str, dict[int, float]] = {}
    places = sorted(range(len(contexts)), key=lambda place: str(contexts[place]))
    for _, group in itertools.groupby(places, key=lambda place: str(contexts[place])):
        rows = list(group)
        body = {"messages": contexts[rows[0]], "responses": [responses[row] for row in rows], "scale": "raw"}
        for one in ask.post(f"{url}/v1/score", json=body).json()["communities"]:
            assert one["scores"] == one["raw"]
            found.setdefault(one["community"], {}).update(zip(rows, one["raw"], strict=True))
    return {name: np.array([rewards[row] for row in range(len(contexts))]) for name, rewards in found.items()}


def trained_rewards(folder: str, contexts: list, responses: list) -> np.ndarray:
    """What the pipeline's scorer says in float32, through transformers' own forward passes on padded batches."""
    manifest = RunDirectory(str(Path(folder).parent)).find(Path(folder).name)
    if manifest is None or "format.max_tokens" not in manifest.identity:
        raise AssertionError(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "can_pack", lambda model: False)
        scorer = scoring.RewardScorer(
            Path(folder),
            format_config=FormatConfig(max_tokens=manifest.identity["format.max_tokens"]),
            tokens_per_batch=8192,
            precision="float32",
        )
    return scorer.score(contexts, responses).rewards


def folders(config: Config) -> dict[str, str]:
    """Community -> its whole model, adapters folded in; the majority's is the global one."""
    run = RunDirectory(config.run_dir)
    found = {"Atlas": str(run.path("global_model"))}
    for name in run.names("reward_models"):
        manifest = run.find(f"reward_models/{name}")
        assert manifest is not None
        found[str(manifest.identity["community"])] = run.path(f"reward_models/{name}")
    return found


@pytest.mark.parametrize("kind", ["decoders", "adapters", "encoders"])
def test_served_rewards_are_those_of_training_time(kind, request, deploy, ask, controlled_run, adapter_run):
    """Every response of a run under every community's model: whole decoders, whole encoders, adapters on one base."""
    run = controlled_run if kind == "decoders" else adapter_run
    if kind == "encoders":
        settings = {"format": {"max_tokens": 96}, "max_loaded_models": 2, "threads": 2}  # two passes side by side
        url = deploy("encoders", models=folders(run), **settings)
    else:
        url = request.getfixturevalue("service_url" if kind == "decoders" else "adapters_url")
    contexts, responses = responses_of(run)
    served = served_rewards(ask, url, contexts, responses)
    expected = {name: trained_rewards(folder, contexts, responses) for name, folder in folders(run).items()}
    assert set(served) == set(expected)
    for name, rewards in expected.items():
        assert np.abs(served[name] - rewards).max() < 1e-5
        assert rewards.std() > 1e-3
    first, second = list(expected.values())[:2]
    assert np.abs(first - second).max() > 1e-2  # the communities' models are not one and the same


def test_an_adapter_that_has_its_base_for_itself_is_served_whole(deploy, ask, adapter_run):
    url = deploy("alone", run_dir=adapter_run.run_dir, communities=["Brevia"])
    (facts,) = ask.get(f"{url}/v1/communities").json()["communities"]
    assert (facts["name"], facts["kind"], facts["is_calibrated"]) == ("Brevia", "full", True)
    contexts, responses = (column[:20] for column in responses_of(adapter_run))
    expected = trained_rewards(folders(adapter_run)["Brevia"], contexts, responses)
    assert np.abs(served_rewards(ask, url, contexts, responses)["Brevia"] - expected).max() < 1e-5


def test_calibrated_scores_and_the_steering_vector_follow_from_raw_ones(service_url, ask):
    weights = {"Brevia": 0.25, "Atlas": 0.75}
    body = {"prompt": PROMPT, "responses": ["i like it a lot .", "hey there ."], "communities": weights}
    answer = ask.post(f"{service_url}/v1/score", json=body).json()
    facts = {row["name"]: row for row in ask.get(f"{service_url}/v1/communities").json()["communities"]}
    by_name = {row["community"]: row for row in answer["communities"]}
    for name, row in by_name.items():
        expected = [(raw - facts[name]["mean"]) / facts[name]["standard_deviation"] for raw in row["raw"]]
        assert row["scores"] == pytest.approx(expected)
    steered = [0.25 * by_name["Brevia"]["scores"][place] + 0.75 * by_name["Atlas"]["scores"][place] for place in (0, 1)]
    assert answer["steered"] == pytest.approx(steered)


def test_scales_are_those_of_the_validation_pairs(service_url, ask, controlled_run):
    """Mean and standard deviation over the responses of a community's validation pairs, each once."""
    run = RunDirectory(controlled_run.run_dir)
    pairs = run.read_table("prepared/pairs.parquet").to_pandas()
    pairs = pairs[(pairs.community == "Brevia") & (pairs.split == "validation")]
    rows = run.read_table("prepared/responses.parquet").to_pandas().set_index("response_id")
    rows = rows.loc[sorted({*pairs.chosen_id, *pairs.rejected_id})]
    contexts = [[dict(message) for message in context] for context in rows.context]
    rewards = trained_rewards(folders(controlled_run)["Brevia"], contexts, list(rows.response))
    facts = {row["name"]: row for row in ask.get(f"{service_url}/v1/communities").json()["communities"]}["Brevia"]
    assert facts["mean"] == pytest.approx(float(rewards.mean()), abs=2e-2)  # the evaluation may have scored in bfloat16
    assert facts["standard_deviation"] == pytest.approx(float(rewards.std()), rel=0.1)
    assert facts["num_validation_pairs"] == len(pairs)


def test_a_comparison_is_the_sigmoid_of_the_margin_at_the_fitted_temperature(service_url, ask):
    body = {"prompt": PROMPT, "response_a": "do this at once .", "response_b": "hey there ."}
    answer = ask.post(f"{service_url}/v1/compare", json=body).json()
    swapped = ask.post(
        f"{service_url}/v1/compare", json=body | {"response_a": body["response_b"], "response_b": body["response_a"]}
    ).json()
    facts = {row["name"]: row for row in ask.get(f"{service_url}/v1/communities").json()["communities"]}
    for row, other in zip(answer["communities"], swapped["communities"], strict=True):
        assert row["probability"] == pytest.approx(expit(row["reward_margin"] / facts[row["community"]]["temperature"]))
        assert row["probability"] + other["probability"] == pytest.approx(1.0)
        if row["interval"] is not None:
            assert row["interval"][0] - 1e-9 <= row["probability"] <= row["interval"][1] + 1e-9
    values = {row["community"]: row["probability"] for row in answer["communities"]}
    apart = answer["disagreement"]
    assert values[apart["most_favourable"]] == max(values.values()) == apart["highest"]
    assert values[apart["least_favourable"]] == min(values.values()) == apart["lowest"]
    assert apart["standard_deviation"] == pytest.approx(np.std(list(values.values())))
    assert swapped["disagreement"]["most_favourable"] == apart["least_favourable"]


def test_what_was_asked_before_is_not_computed_again(adapters_url, ask):
    body = {"prompt": PROMPT, "responses": ["a text that nobody has sent yet .", "and another one ."]}
    first = ask.post(f"{adapters_url}/v1/score", json=body)
    before = counters(ask, adapters_url)
    assert ask.post(f"{adapters_url}/v1/score", json=body).json() == first.json()
    after = counters(ask, adapters_url)
    assert after["scpo_scored_responses_total"] == before["scpo_scored_responses_total"]
    assert after["scpo_cache_hits_total"] == before["scpo_cache_hits_total"] + 2 * len(first.json()["communities"])


def test_communities_on_one_base_share_a_forward_pass(adapters_url, ask):
    before = counters(ask, adapters_url)
    body = {"prompt": PROMPT, "response": "one text for all communities at once ."}
    answer = ask.post(f"{adapters_url}/v1/score", json=body).json()
    after = counters(ask, adapters_url)
    assert (
        after["scpo_scored_responses_total"] - before["scpo_scored_responses_total"] == len(answer["communities"]) == 3
    )
    assert after["scpo_forward_passes_total"] - before["scpo_forward_passes_total"] == 1


def test_a_text_that_comes_twice_in_a_request_is_computed_once(adapters_url, ask):
    before = counters(ask, adapters_url)
    body = {"prompt": PROMPT, "responses": ["twice the same words ."] * 5, "communities": ["Brevia"]}
    (row,) = ask.post(f"{adapters_url}/v1/score", json=body).json()["communities"]
    after = counters(ask, adapters_url)
    assert len(set(row["raw"])) == 1 and len(row["raw"]) == 5
    assert after["scpo_scored_responses_total"] - before["scpo_scored_responses_total"] == 1


def test_a_long_response_is_cut_and_says_so(service_url, ask):
    body = {"prompt": PROMPT, "responses": ["word " * 500, "short ."], "communities": ["Atlas"]}
    (row,) = ask.post(f"{service_url}/v1/score", json=body).json()["communities"]
    assert row["truncated"] == [True, False]


def test_full_models_take_turns_in_a_bounded_cache(deploy, ask, adapter_run):
    """One place in memory, three models: every answer is right, whoever was asked before."""
    url = deploy(
        "bounded", models=folders(adapter_run), format={"max_tokens": 96}, max_loaded_models=1, max_cached_rewards=0
    )
    body = {"prompt": PROMPT, "response": "i like it a lot .", "scale": "raw"}
    once = {row["community"]: row["raw"] for row in ask.post(f"{url}/v1/score", json=body).json()["communities"]}
    for name in (*once, *once):
        (row,) = ask.post(f"{url}/v1/score", json=body | {"communities": [name]}).json()["communities"]
        assert row["raw"] == pytest.approx(once[name], abs=1e-6)
    assert len({tuple(raw) for raw in once.values()}) == 3
    assert counters(ask, url)["scpo_model_loads_total"] >= 8  # one place: whoever comes next is loaded again


def test_trainers_get_the_calibrated_rewards(service_url, ask):
    """OpenRLHF's and slime's requests, beside /v1/score; verl's, beside the raw reward of the templated text."""
    responses = ["i like it a lot .", "do this at once ."]
    body = {"prompt": PROMPT, "responses": responses, "communities": ["Brevia"]}
    (row,) = ask.post(f"{service_url}/v1/score", json=body).json()["communities"]
    query = {"query": [PROMPT + text for text in [*responses, " "]], "prompts": [PROMPT] * 3, "labels": [None] * 3}
    found = ask.post(f"{service_url}/v1/rewards/Brevia/openrlhf", json=query).json()
    assert found["rewards"] == pytest.approx([*row["scores"], -3.0], abs=1e-5)
    assert found["extra_logs"]["empty"] == [0.0, 0.0, 1.0]
    sample = {"prompt": [{"role": "user", "content": PROMPT}], "response": responses[1], "label": None}
    assert ask.post(f"{service_url}/v1/rewards/Brevia/slime", json=sample).json() == pytest.approx(
        row["scores"][1], abs=1e-5
    )
    templated = f"<|user|> {PROMPT} <|end|> <|assistant|> {responses[0]} <|end|> "
    asked = {"model": "Brevia", "input": templated, "use_activation": False}
    answer = ask.post(f"{service_url}/classify", json=asked).json()
    assert answer["data"][-1]["probs"][-1] == pytest.approx(row["raw"][0], abs=1e-5)
    assert answer["usage"]["prompt_tokens"] > 10


def test_models_without_a_scale_are_served_raw_and_say_so(deploy, ask, adapter_run):
    url = deploy("elsewhere", models={"Brevia": folders(adapter_run)["Brevia"]}, format={"max_tokens": 96})
    body = {"prompt": PROMPT, "response": "i like it a lot ."}
    refused = ask.post(f"{url}/v1/score", json=body)
    assert refused.status_code == 422 and 'ask for "scale": "raw"' in refused.json()["error"]
    assert ask.post(f"{url}/v1/score", json=body | {"scale": "raw"}).status_code == 200
    assert ask.post(f"{url}/v1/rewards/Brevia/slime", json=body).status_code == 422
    compared = ask.post(f"{url}/v1/compare", json={"prompt": PROMPT, "response_a": "a .", "response_b": "b ."}).json()
    (row,) = compared["communities"]
    assert row["interval"] is None and row["is_calibrated"] is False
    assert row["probability"] == pytest.approx(expit(row["reward_margin"]))


def counters(ask: httpx.Client, url: str) -> dict[str, float]:
    text = ask.get(f"{url}/metrics").text
    found = re.findall(r'^(scpo_\w+){replica="(\w+)"} (\S+)$', text, re.MULTILINE)
    assert len({replica for _, replica, _ in found}) == 1
    return {name: float(value) for name, _, value in found}
