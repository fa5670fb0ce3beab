"""Who is computed with whom, and when."""

import asyncio
import threading

import pytest

from scpo_ray.config import FormatConfig
from scpo_ray.formatting import Formatter, TokenSequence
from scpo_ray.models import load_tokenizer
from scpo_ray.serving.batching import Batcher, Item, _same_community_first
from scpo_ray.serving.catalog import ServedModel
from scpo_ray.serving.loading import LoadedModels, load_whole
from tests.serving.served_models import CONFIG, CONTEXT, Counting, served


def test_two_passes_divide_what_waits_and_run_side_by_side(tiny_reward_model):
    """The first pass ends only once the second one runs."""
    met = threading.Barrier(2, timeout=30)
    sizes = []

    def load(model, dropped):
        scorer = load_whole(CONFIG, model)

        class Meeting:
            packs = scorer.packs

            def forward(self, sequences):
                met.wait()
                sizes.append(len(sequences))
                return scorer.forward(sequences)

        return Meeting()

    async def run():
        batcher = Batcher(LoadedModels(1, load), 1024, 100, num_passes=2, num_threads=2)
        (model,) = served(tiny_reward_model, 1)
        formatter = Formatter(load_tokenizer(tiny_reward_model), model.format)
        sequences = formatter.format([CONTEXT] * 4, [f"text {word} ." for word in "abcd"])
        rewards = await asyncio.gather(*batcher.submit([(model, sequence) for sequence in sequences]))
        return rewards, [float(value) for value in load_whole(CONFIG, model).forward(sequences)]

    found, expected = asyncio.run(run())
    assert found == pytest.approx(expected, abs=1e-6)
    assert sizes == [2, 2]


@pytest.mark.parametrize(("number", "starts"), [(12, 2), (3, 1)])
def test_where_much_waits_the_next_batch_needs_no_event_loop(tiny_reward_model, number, starts):
    """Batches of one sequence; the loop is held up while the first is computed."""
    started = threading.Semaphore(0)

    def load(model, dropped):
        scorer = load_whole(CONFIG, model)

        class Telling:
            packs = scorer.packs

            def forward(self, sequences):
                started.release()
                return scorer.forward(sequences)

        return Telling()

    async def run():
        (model,) = served(tiny_reward_model, 1)
        formatter = Formatter(load_tokenizer(tiny_reward_model), model.format)
        sequences = formatter.format([CONTEXT] * number, [f"text {word} ." for word in "abcdefghijkl"[:number]])
        batcher = Batcher(LoadedModels(1, load), len(sequences[0].input_ids), 100)
        answers = batcher.submit([(model, sequence) for sequence in sequences])
        await asyncio.sleep(0)
        found = sum(started.acquire(timeout=timeout) for timeout in (30, 1, 0.5))
        rewards = await asyncio.gather(*answers)
        return found, rewards, [float(load_whole(CONFIG, model).forward([sequence])[0]) for sequence in sequences]

    found, rewards, expected = asyncio.run(run())
    assert found == starts
    assert rewards == pytest.approx(expected, abs=1e-6)


async def turns(folder, texts: str, budget: int, late: int) -> tuple[list[tuple[str, int]], int]:
    """Two models, one place in memory, so many texts of one length for each, batches of two; then more for the first once its
    first batch is there. Batches as they were computed, and loads."""
    order = []

    def load(model, dropped):
        scorer = load_whole(CONFIG, model)

        class Noting:
            packs = scorer.packs

            def forward(self, sequences):
                order.append((model.community, len(sequences)))
                return scorer.forward(sequences)

        return Noting()

    wanted = served(folder, 2)
    loaded = LoadedModels(1, load)
    formatter = Formatter(load_tokenizer(folder), wanted[0].format)
    sequences = formatter.format([CONTEXT] * len(texts), [f"text {word} ." for word in texts])
    batcher = Batcher(loaded, budget * len(sequences[0].input_ids), 100)
    first = batcher.submit([(model, sequence) for model in wanted for sequence in sequences])
    await first[0]
    then = batcher.submit([(wanted[0], sequence) for sequence in sequences[:late]])
    await asyncio.gather(*first, *then)
    return order, loaded.num_loads


def test_a_model_has_its_turn_for_all_that_waited_when_it_began(tiny_reward_model):
    """Each is loaded once for what waits, and nobody starves."""
    order, num_loads = asyncio.run(turns(tiny_reward_model, "abcde", 2, late=3))
    assert num_loads == 3
    assert order == [("c0", 2), ("c0", 2), ("c0", 2), ("c1", 2), ("c1", 2), ("c1", 1), ("c0", 2)]


def test_a_turn_ends_after_eight_batches_although_more_waits(tiny_reward_model):
    """Ten texts each, one a batch: whoever asked both first need not wait for everybody."""
    order, num_loads = asyncio.run(turns(tiny_reward_model, "abcdefghij", 1, late=0))
    assert order == [("c0", 1)] * 8 + [("c1", 1)] * 8 + [("c0", 1)] * 2 + [("c1", 1)] * 2
    assert num_loads == 4


def waiting(*described: str) -> list[Item]:
    """ "a3" is a sequence of three tokens that community a waits for."""
    return [
        Item(
            ServedModel(name, "adapter", "folder", "hash", FormatConfig()),
            TokenSequence([1] * int(length), None, False),
            None,
        )
        for name, length in described
    ]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["a3", "b1", "a4", "b2"], ["a3", "a4"]),  # b would not fit whole, and half is taken
        (["a3", "b1", "a4", "b2", "c1"], ["a3", "a4", "c1"]),
        (["a3", *["b8"] * 8, "a4"], ["a3"]),  # the last comes after eight budgets
        (["a3", "b1", "c5", "a4"], ["a3", "a4", "b1"]),
        (["a2", "b5", "c1"], ["a2", "b5", "c1"]),
        (["a2", "b5", "b3", "c1"], ["a2", "b5"]),  # less than half is taken: part of b
        (["a9", "b1"], ["a9"]),  # longer than the budget, alone
        (["a3", "a4", "a3"], ["a3", "a4"]),
    ],
)
def test_packed_batches_hold_few_communities(asked, expected):
    items = waiting(*asked)
    batch = _same_community_first(items, 8)
    assert batch[0] is items[0]
    assert [f"{item.model.community}{item.length}" for item in batch] == expected


@pytest.mark.parametrize("num_passes", [1, 2])
def test_whoever_comes_as_the_last_pass_ends_is_not_forgotten(tiny_reward_model, num_passes):
    async def run():
        (model,) = served(tiny_reward_model, 1)
        loaded = LoadedModels(1, lambda model, dropped: load_whole(CONFIG, model, dropped))
        batcher = Batcher(loaded, 1024, 100, num_passes=num_passes)
        formatter = Formatter(load_tokenizer(tiny_reward_model), model.format)
        (sequence,) = formatter.format([CONTEXT], ["again and again ."])
        async with asyncio.timeout(30):  # waits for no task of its own, so that the next submission comes at once
            return [await batcher.submit([(model, sequence)])[0] for _ in range(20)]

    assert len(set(asyncio.run(run()))) == 1


def test_whoever_gave_up_takes_no_place_in_the_queue(tiny_reward_model):
    async def run():
        (model,) = served(tiny_reward_model, 1)
        batcher = Batcher(LoadedModels(1, Counting()), 1024, 4)
        formatter = Formatter(load_tokenizer(tiny_reward_model), model.format)
        (sequence,) = formatter.format([CONTEXT], ["one ."])
        for answer in batcher.submit([(model, sequence)] * 4):
            answer.cancel()
        answers = batcher.submit([(model, sequence)] * 4)
        return batcher.num_queued, await asyncio.gather(*answers)

    waiting, rewards = asyncio.run(run())
    assert waiting == 4 and len(set(rewards)) == 1
