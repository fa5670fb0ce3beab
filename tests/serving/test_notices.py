"""What the router hears of the models that a replica was asked for."""

import asyncio
import re
import time

from scpo_ray.serving.notices import Notices
from tests.serving.conftest import eventually

HEADER = "serve_multiplexed_model_id"


def test_one_model_a_second_takes_the_place_of_another():
    now = 100.0
    told: list[str] = []

    async def tell(model: str) -> None:
        told.append(model)

    notices = Notices(2, tell, clock=lambda: now)

    def heard(asked: str) -> str:
        """Of these models, those that the router was told of."""
        told.clear()
        for model in asked:
            asyncio.run(notices.asked_for(model))
        return "".join(told)

    assert heard("abaabb") == "abaabb"  # there is room for both
    assert heard("cabcd") == "cbc"  # a went, asked for before b
    now += 0.99
    assert heard("a") == ""
    now += 0.02
    assert heard("abcba") == "aca"


def test_callers_of_a_model_reach_the_replica_that_was_asked_for_it(deploy, ask, controlled_run):
    """Two replicas; whoever names the model comes to the one that had it, once a change has gone round."""
    url = deploy("routed", run_dir=controlled_run.run_dir, num_replicas=2, max_loaded_models=1, max_cached_rewards=0)
    body = {"prompt": "what do you think ?", "responses": ["i like it .", "not at all ."], "scale": "raw"}
    names = [row["name"] for row in ask.get(f"{url}/v1/communities").json()["communities"]][:2]

    def num_scored() -> dict[str, float]:
        """Replica -> responses computed so far."""
        found: dict[str, float] = {}

        def read() -> bool:
            text = ask.get(f"{url}/metrics").text
            (row,) = re.findall(r'^scpo_scored_responses_total{replica="(\w+)"} (\S+)$', text, re.MULTILINE)
            found[row[0]] = float(row[1])
            return len(found) == 2

        eventually(read)
        return found

    for name in names:
        question = body | {"communities": [name]}
        assert ask.post(f"{url}/v1/score", json=question, headers={HEADER: name}).status_code == 200
        time.sleep(2)
        before = num_scored()
        for _ in range(10):
            assert ask.post(f"{url}/v1/score", json=question, headers={HEADER: name}).status_code == 200
        after = num_scored()
        assert sorted(after[replica] - before[replica] for replica in before) == [0, 20]
