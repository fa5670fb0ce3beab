"""The order of prompts is a function of (seed, step); test prompts are a function of their names."""

import numpy as np
import pytest

from scpo_ray.errors import DataError
from scpo_ray.ppo.prompts import PromptSet, canaries, distinct_contexts, is_test_group, prompts_of_step, request_seeds
from scpo_ray.ppo.records import Prompt


def prompt(name: str, community: str = "Brevia") -> Prompt:
    return Prompt(name, f"group of {name}", community, [{"role": "user", "content": name}], (3, 4, 5))


PROMPTS = [prompt(f"p{number}") for number in range(10)]


def names(step: int, number: int = 4, seed: int = 0) -> list[str]:
    return [each.prompt_id for each in prompts_of_step(PROMPTS, step=step, number=number, seed=seed)]


def test_steps_are_consecutive_pieces_of_one_stream():
    """Whatever is asked first: a resumed run asks for step 7 without having asked for 0 to 6."""
    stream = [name for step in range(5) for name in names(step)]
    assert stream == [name for step in range(20) for name in names(step, number=1)]
    assert names(3) == stream[12:16]


def test_every_prompt_comes_once_an_epoch():
    stream = [name for step in range(10) for name in names(step, number=2)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == sorted(each.prompt_id for each in PROMPTS)
    assert stream[:10] != stream[10:]
    assert names(0, seed=1) != names(0)


def test_a_step_may_be_larger_than_the_prompts():
    found = names(0, number=25)
    assert sorted(found[:10]) == sorted(found[10:20])
    assert len(found) == 25


def test_request_seeds_differ_between_steps_and_requests():
    seeds = request_seeds(seed=0, step=4, number=100)
    assert seeds == request_seeds(seed=0, step=4, number=100)
    assert len(set(seeds)) == 100
    assert not set(seeds) & set(request_seeds(seed=0, step=5, number=100))


def test_the_share_of_test_groups():
    shares = [
        np.mean([is_test_group(f"group {number}", salt=salt, fraction=0.2) for number in range(4000)])
        for salt in ("a", "b")
    ]
    assert all(abs(share - 0.2) < 0.025 for share in shares)


def test_test_groups_stay_when_there_are_more_of_them():
    """A larger share holds the smaller one: a policy of the one is never measured on what it was trained on in the other."""
    small = {number for number in range(500) if is_test_group(str(number), salt="a", fraction=0.1)}
    large = {number for number in range(500) if is_test_group(str(number), salt="a", fraction=0.3)}
    assert small < large


def test_prompts_of_a_community():
    prompts = PromptSet([prompt("a"), prompt("b", "Dorvia")], [], num_too_long=3)
    assert [each.prompt_id for each in prompts.of({"Dorvia"})] == ["b"]
    assert [each.prompt_id for each in prompts.of(None)] == ["a", "b"]
    with pytest.raises(
        DataError, match=r"Fenland: no training prompt that leaves room for a response \(3 are too long\)"
    ):
        prompts.of({"Fenland"})


def test_the_same_context_counts_once():
    found = distinct_contexts([prompt("a"), prompt("a", "Dorvia"), prompt("b")])
    assert [(each.prompt_id, each.community) for each in found] == [("a", "Brevia"), ("b", "Brevia")]


def test_canaries_fit_the_context_and_stay():
    found = canaries(PROMPTS, number=3, max_tokens=20, vocab_size=50)
    assert found == canaries(PROMPTS, number=3, max_tokens=20, vocab_size=50)
    assert all(sequence[:3] == [3, 4, 5] and len(sequence) <= 19 for sequence in found)
    assert max(max(sequence) for sequence in found) < 50


def test_a_conversation_is_on_one_side(tmp_path):
    """Its later turns hold the first prompt and the answer to it; opening prompts that nearly agree are one group."""
    import json

    from scpo_ray.artifacts import RunDirectory
    from scpo_ray.config import Config
    from scpo_ray.ppo.prompts import conversation_groups, load
    from scpo_ray.stages import prepare

    rows = []
    for number in range(60):
        opening = {"role": "user", "content": f"what is number {number} and {number * 7} to you"}
        later = [
            opening,
            {"role": "assistant", "content": f"much {number}"},
            {"role": "user", "content": f"tell me far more of another thing {number * 13} altogether please"},
        ]
        for turn, messages in enumerate(([opening], later)):
            rows += [
                {"messages": messages, "chosen": f"good {turn}", "rejected": f"bad {turn}", "community": community}
                for community in ("Here", "There")
            ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = Config(
        run_dir=str(tmp_path / "run"),
        prepare={
            "datasets": ["pair_files"],
            "pair_files": {"paths": [str(tmp_path / "pairs.jsonl")]},
            "majority": ["Here"],
        },
    )
    prepare.run(config)
    directory = RunDirectory(config.run_dir)
    from scpo_ray.config import FormatConfig
    from scpo_ray.formatting import Formatter
    from scpo_ray.models import train_tokenizer

    formatter = Formatter(train_tokenizer(["a b"], vocab_size=64, architecture="llama"), FormatConfig())
    found = load(directory, formatter, max_prompt_tokens=500, salt="scpo", test_fraction=0.3)
    sides = [{each.context[0]["content"] for each in side} for side in (found.train, found.test)]
    assert len(sides[0]) > 10 and len(sides[1]) > 10
    assert not sides[0] & sides[1]
    assert {len(each.context) for each in found.test} == {1, 3}
    pairs = directory.read_table("prepared/pairs.parquet").to_pylist()
    groups = conversation_groups(directory)
    assert len({row["prompt_group"] for row in pairs}) > len(set(groups.values()))  # turns have groups of their own
