"""The client against the real service; the reward function inside TRL."""

import asyncio
import math

import httpx
import pytest
from pyarrow import parquet

from scpo_ray import policies
from scpo_ray.client import AsyncClient, Client, reward_function
from scpo_ray.config import ModelConfig
from scpo_ray.errors import ServiceError


@pytest.fixture
def client(service_url, service_token):
    with Client(service_url, token=service_token) as made:
        yield made


@pytest.fixture
def calibrated(client):
    """A community whose scores have a scale."""
    return next(community for community in client.communities().communities if community.is_calibrated)


def test_the_client_says_what_the_service_says(service_url, service_token, client):
    asked = {"messages": [{"role": "user", "content": "what do you think ?"}], "responses": ["a lot .", "nothing ."]}
    bare = httpx.post(
        f"{service_url}/v1/score", json=asked, headers={"Authorization": f"Bearer {service_token}"}, timeout=60
    )
    answer = client.score(**asked)
    told = answer.model_dump(mode="json")
    assert told["run"] == bare.json()["run"]
    for mine, theirs in zip(told["communities"], bare.json()["communities"], strict=True):
        assert mine["community"] == theirs["community"]
        assert mine["raw"] == pytest.approx(theirs["raw"], abs=1e-5)

    async def ask():
        async with AsyncClient(service_url, token=service_token) as other:
            return await asyncio.gather(other.score(**asked), other.communities())

    scored, served = asyncio.run(ask())
    assert served == client.communities()
    assert {community.name for community in served.communities} == {view.community for view in scored.communities}
    for mine, theirs in zip(answer.communities, scored.communities, strict=True):
        assert mine.raw == pytest.approx(theirs.raw, abs=1e-5)


def test_calibrated_scores_are_standard_deviations_above_the_mean_response(client, calibrated):
    answer = client.score(prompt="what ?", responses=["a lot .", "nothing ."], communities=calibrated.name)
    view = answer.communities[0]
    assert view.raw[0] != view.raw[1]
    expected = [(raw - calibrated.mean) / calibrated.standard_deviation for raw in view.raw]
    assert view.scores == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_comparison_is_the_probability_of_the_margin(client, calibrated):
    texts = ["a lot , because there is room .", "nothing ."]
    raw = client.score(prompt="what ?", responses=texts, communities=calibrated.name).communities[0].raw
    answer = client.compare(
        prompt="what ?", response_a=texts[0], response_b=texts[1], communities={calibrated.name: 1.0}
    )
    preference = answer.communities[0]
    assert preference.reward_margin == pytest.approx(raw[0] - raw[1], abs=1e-4)
    assert preference.probability == pytest.approx(
        1 / (1 + math.exp(-preference.reward_margin / calibrated.temperature)), abs=1e-5
    )
    assert answer.steered == pytest.approx(preference.probability)


def test_a_stranger_and_an_unknown_community_are_told_so(service_url, service_token, client):
    with (
        Client(service_url, token="not-the-right-token-at-all") as stranger,
        pytest.raises(ServiceError, match="HTTP 401: "),
    ):
        stranger.communities()
    with pytest.raises(ServiceError, match=r"HTTP 404: .*Atlantis"):
        client.score(prompt="what ?", response="nothing .", communities="Atlantis")


CORPUS = [
    "what do you think of the new harbour , honestly ? i like it a lot because there is more room for all boats ."
]
PROMPTS = ["what do you think ?", "is there room ?", "honestly ?", "do you like all boats ?"]


def train(reward, prompts, folder):
    """Two steps of GRPO, four completions each, of a random policy; TRL writes them down with their rewards."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    policy = policies.make(ModelConfig(vocab_size=200), texts=CORPUS, max_tokens=128, seed=5)
    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        learning_rate=1e-3,
        logging_steps=1,
        log_completions=True,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        seed=1,
    )
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        args=config,
    )
    trainer.train()
    return trainer.state.log_history


@pytest.mark.parametrize("is_conversation", [False, True])
def test_trl_trains_on_the_services_rewards(service_url, service_token, client, calibrated, tmp_path, is_conversation):
    prompts = [[{"role": "user", "content": text}] if is_conversation else text for text in PROMPTS]
    reward = reward_function(service_url, calibrated.name, token=service_token)
    name = f"reward_{calibrated.name}"
    history = train(reward, prompts, tmp_path)

    means = [line[f"rewards/{name}/mean"] for line in history if f"rewards/{name}/mean" in line]
    tables = [parquet.read_table(path).to_pylist() for path in sorted((tmp_path / "completions").iterdir())]
    assert [len(rows) for rows in tables] == [4, 4]
    assert len({row[name] for rows in tables for row in rows}) > 2
    for mean, rows in zip(means, tables, strict=True):
        served = [served_score(client, row, calibrated.name) for row in rows]
        assert [row[name] for row in rows] == pytest.approx(served, rel=1e-3, abs=1e-4)
        assert mean == pytest.approx(sum(row[name] for row in rows) / 4, abs=1e-5)


def served_score(client, row, community):
    """What the service says of a completion that the trainer has written down, asked by itself."""
    prompt, completion = row["prompt"], row["completion"]
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    text = completion if isinstance(completion, str) else completion[0]["content"]
    if not text.strip():
        return -3.0
    return client.score(messages=messages, response=text, communities=community).communities[0].scores[0]
