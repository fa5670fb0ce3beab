"""Other trainers' requests, as their sources send them, and the answers that their sources read."""

import json
import math
import time

import pytest
from pydantic import ValidationError

from scpo_ray.serving.trainers import (
    END_MARKS,
    ClassifyRequest,
    Exchange,
    OpenRlhfRequest,
    SlimeRequest,
    classify_response,
    openrlhf_response,
    plain_response,
    sigmoid,
)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_openrlhf_sends_prompt_and_response_in_one_text():
    request = OpenRlhfRequest.model_validate(
        {
            "query": ["Tea or coffee? Tea, always.<|im_end|>", "Tea?Tea? No."],
            "prompts": ["Tea or coffee? ", "Tea?"],
            "labels": ["", None],
            "step": 7,  # a field of some later version
        }
    )
    assert request.exchanges == [
        Exchange(user("Tea or coffee? "), "Tea, always."),
        Exchange(user("Tea?"), "Tea? No."),  # the prompt is taken off once
    ]
    assert [exchange.is_empty for exchange in request.exchanges] == [False, False]


@pytest.mark.parametrize("written", ["", "  \n", "</s>", " <|im_end|><|endoftext|>\n"])
def test_a_policy_that_says_nothing_has_an_empty_response_and_is_no_error(written):
    request = OpenRlhfRequest(query=["Tea?" + written], prompts=["Tea?"])
    assert request.exchanges[0].is_empty


def test_openrlhf_asks_a_second_address_about_nothing():
    request = OpenRlhfRequest(query=[], prompts=[], labels=[])
    assert request.exchanges == []
    assert openrlhf_response([], is_empty=[], truncated=[]).model_dump() == {
        "rewards": [],
        "scores": [],
        "extra_logs": {"empty": [], "truncated": []},
    }


def test_a_query_that_does_not_begin_with_its_prompt_is_named():
    with pytest.raises(ValidationError) as caught:
        OpenRlhfRequest(query=["Tea? Yes.", "offee? No."], prompts=["Tea?", "Coffee?"])
    message = caught.value.errors()[0]["msg"]
    assert "query 1 begins with 'offee? No.', not with its prompt 'Coffee?'" in message
    assert "shorten prompts" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"query": ["Tea?", "Tea?"], "prompts": ["Tea?"]}, "2 in query, 1 in prompts"),
        ({"query": ["Tea?"], "prompts": ["Tea?"], "labels": []}, "1 in query, 1 in prompts, 0 in labels"),
    ],
)
def test_lists_of_different_lengths_are_counted(fields, counts):
    with pytest.raises(ValidationError, match=counts):
        OpenRlhfRequest(**fields)


def test_openrlhf_gets_rewards_to_train_on_and_scores_to_filter_by():
    answer = openrlhf_response([0.0, math.log(3), -3.0], is_empty=[False, False, True], truncated=[True, False, False])
    assert answer.rewards == [0.0, math.log(3), -3.0]
    assert answer.scores == pytest.approx([0.5, 0.75, 1 / (1 + math.e**3)])
    assert json.loads(answer.model_dump_json())["extra_logs"] == {
        "empty": [0.0, 0.0, 1.0],
        "truncated": [1.0, 0.0, 0.0],
    }


def test_slime_sends_a_text_or_messages():
    said = {"response": "Tea, always.<|end|>", "label": None, "metadata": {}}
    assert SlimeRequest(prompt="Tea?", **said).exchange == Exchange(user("Tea?"), "Tea, always.")
    conversation = [
        {"role": "system", "content": "Be brief.", "name": "house"},
        {"role": "user", "content": "Tea?"},
    ]
    assert SlimeRequest(prompt=conversation, **said).exchange == Exchange(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tea?"}], "Tea, always."
    )


@pytest.mark.parametrize(
    "prompt", ["", " ", [], [{"role": "tool", "content": "4"}], [{"role": "user", "content": None}]]
)
def test_slime_cannot_ask_without_a_text(prompt):
    with pytest.raises(ValidationError, match="prompt"):
        SlimeRequest(prompt=prompt, response="Tea.")


@pytest.mark.parametrize(
    "make",
    [
        lambda text: OpenRlhfRequest(query=["Tea?" + text], prompts=["Tea?"]),
        lambda text: SlimeRequest(prompt="Tea?", response=text),
        lambda text: ClassifyRequest(model="Chile", input=text),
    ],
)
def test_half_a_character_is_refused_and_a_control_character_is_not(make):
    with pytest.raises(ValidationError, match="lone surrogate at character"):
        make("Te\ud800a")
    assert make("Te\x07a")


def test_a_response_is_what_remains_without_control_characters_and_end_marks():
    assert plain_response("Te\x00a\x1b.\n") == "Tea.\n"
    assert plain_response("Tea </s> and </s></s>") == "Tea </s> and "
    assert plain_response("<|im_start|>Tea") == "<|im_start|>Tea"
    assert plain_response("Tea") == "Tea"
    for mark in END_MARKS:
        assert plain_response(f"Tea.{mark}\n{mark}") == "Tea."


VERL = {"model": "Chile", "input": "<|user|> tea ? <|end|> <|assistant|> tea . <|end|>", "use_activation": False}


def test_verl_reads_its_reward_where_vllm_puts_it():
    request = ClassifyRequest(**VERL, add_special_tokens=False)
    assert request.input == [VERL["input"]]
    answer = classify_response(request, [-2.5], identifier="classify-1", created=1_700_000_000, num_tokens=11)
    told = json.loads(answer.model_dump_json())
    assert told["data"][-1]["probs"][-1] == -2.5
    assert told == {
        "id": "classify-1",
        "object": "list",
        "created": 1_700_000_000,
        "model": "Chile",
        "data": [{"index": 0, "label": "LABEL_0", "probs": [-2.5], "num_classes": 1}],
        "usage": {"prompt_tokens": 11, "total_tokens": 11, "completion_tokens": 0},
    }


@pytest.mark.parametrize(
    ("said", "probs"),
    [
        ({"use_activation": False}, [math.log(3), -800.0]),
        ({"activation": False}, [math.log(3), -800.0]),  # before vLLM 0.11.2
        ({"use_activation": True, "activation": False}, [0.75, 0.0]),
        ({"activation": True}, [0.75, 0.0]),
        ({}, [0.75, 0.0]),
        ({"use_activation": None}, [0.75, 0.0]),
    ],
)
def test_activation_asks_for_a_probability(said, probs):
    request = ClassifyRequest(model="Chile", input=["tea", "coffee"], **said)
    answer = classify_response(request, [math.log(3), -800.0], identifier="x", created=0, num_tokens=2)
    assert [item.probs for item in answer.data] == [pytest.approx([prob]) for prob in probs]
    assert [item.index for item in answer.data] == [0, 1]


@pytest.mark.parametrize(
    ("tokens", "place"), [([1, 2, 3], "input 0 is int"), ([[1, 2]], "input 0 is list"), (["tea", 7], "input 1 is int")]
)
def test_token_ids_are_refused_because_they_are_another_tokenizers(tokens, place):
    with pytest.raises(ValidationError, match=f"{place}, not text; send texts"):
        ClassifyRequest(model="Chile", input=tokens)


def test_a_reward_too_few_is_no_answer():
    request = ClassifyRequest(model="Chile", input=["tea", "coffee"])
    with pytest.raises(ValueError, match="1 rewards for 2 inputs"):
        classify_response(request, [0.5], identifier="x", created=0, num_tokens=2)


def test_the_sigmoid_of_any_finite_reward():
    assert sigmoid(0) == 0.5
    assert sigmoid(math.log(4)) == pytest.approx(0.8)
    assert sigmoid(-math.log(4)) == pytest.approx(0.2)
    assert sigmoid(-1e6) == 0.0
    assert sigmoid(1e6) == 1.0
    assert sigmoid(-700) == pytest.approx(math.exp(-700))


def test_control_characters_of_a_prompt_are_taken_off_and_end_no_training():
    asked = "Te\x07a?"
    (exchange,) = OpenRlhfRequest(query=[asked + " Yes."], prompts=[asked]).exchanges
    assert exchange.context == [{"role": "user", "content": "Tea?"}] and exchange.response == " Yes."
    for prompt in (asked, [{"role": "user", "content": asked}]):
        assert SlimeRequest(prompt=prompt, response="Yes.").exchange.context == [{"role": "user", "content": "Tea?"}]
    with pytest.raises(ValidationError, match="is blank"):
        SlimeRequest(prompt="\x07 ", response="Yes.")


def test_end_marks_take_time_by_the_length_of_the_text():
    """Half a million of them, and as many that something follows."""
    many = "</s> " * 500_000
    start = time.perf_counter()
    assert plain_response(f"Tea.{many}") == "Tea."
    assert plain_response(f"Tea.{many}x") == f"Tea.{many}x"
    assert time.perf_counter() - start < 2
