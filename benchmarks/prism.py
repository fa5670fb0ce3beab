"""Files of PRISM's schema and published statistics (Kirk et al. 2024), of any size, with preferences that can be learned.

python -m benchmarks.prism FOLDER CONVERSATIONS

writes survey.jsonl and utterances.jsonl. First turns have 4 responses, later ones 2; prompts, responses and scores have
the published means and deviations, countries their published numbers of raters. A conversation has 1 and a Poisson number of
turns: 27,172 turns in 8,011 conversations are their mean, and that `turn` is 1.2 in the mean over responses is their variance.

PRISM's texts are not to be had without its licence, so words are drawn: English ones as often as they are in Python's own help,
and made-up rare ones, so that MiniLM's tokenizer makes of the texts what it makes of English: a token of 4.4 characters. A
response leans to one of eight traits, which shows in a tenth of its words, and each country likes traits a little differently.
"""

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from scipy import stats

RATERS = {
    "United States": 386,
    "United Kingdom": 340,
    "South Africa": 86,
    "New Zealand": 77,
    "Australia": 72,
    "Mexico": 67,
    "Chile": 65,
    "Israel": 61,
    "Canada": 54,
}
MINORITIES = ("Chile", "South Africa", "New Zealand", "Australia", "Mexico", "Israel", "Canada")
"""Those of the published runs."""
CONVERSATIONS_PER_RATER, TURNS, MAX_TURNS = 5.74, 3.39, 22
PROMPT_CHARACTERS, RESPONSE_CHARACTERS = (69.9, 62.0, 1311), (565.3, 387.9, 4630)
"""Mean, deviation, maximum."""
SCORE_MEAN, SCORE_DEVIATION = 65.1, 29.3
NUM_TRAITS, WORDS_PER_TRAIT, TRAIT_SHARE = 8, 12, 0.1
_CONVERSATIONS_AT_ONCE = 2000
_CHARACTERS_PER_WORD = 5.6  # with the space
_RARE_SHARE, _NUM_RARE = 0.11, 15_000
_SYLLABLES = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "la",
    "me",
    "ni",
    "po",
    "ru",
    "sa",
    "te",
    "vi",
    "zo",
    "ka",
    "le",
    "mo",
    "nu",
    "pa",
    "ri",
)


@dataclass(frozen=True)
class _Turn:
    conversation: int
    turn: int
    country: int
    rater: int
    num_responses: int


def main(folder: str, conversations: str) -> None:
    """Write the files and say what is in them."""
    print(write_prism(Path(folder), int(conversations)))


def write_prism(folder: Path, num_conversations: int, *, seed: int = 0) -> dict[str, int]:
    """survey.jsonl and utterances.jsonl; nothing where they are there already. Returns how much was written.

    Raises:
        ValueError: another number of conversations is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "size.json").exists():
        known = json.loads((folder / "size.json").read_text())
        if known["conversations"] != num_conversations:
            raise ValueError(
                f"{folder}: has {known['conversations']} conversations and not {num_conversations}; name another folder"
            )
        return known
    random = np.random.default_rng([seed, 41])
    raters = _raters(max(len(RATERS), round(num_conversations / CONVERSATIONS_PER_RATER)))
    names = list(RATERS)
    with (folder / "survey.jsonl").open("w") as file:
        for number, country in enumerate(raters):
            row = {"user_id": f"user{number}", "location": {"reside_country": names[country]}}
            file.write(json.dumps(row) + "\n")
    likes = random.normal(size=(1, NUM_TRAITS)) + 0.7 * random.normal(size=(len(names), NUM_TRAITS))
    size = {"raters": len(raters), "conversations": num_conversations, "interactions": 0, "responses": 0}
    with (folder / "utterances.jsonl").open("w") as file:
        for start in range(0, num_conversations, _CONVERSATIONS_AT_ONCE):
            numbers = range(start, min(start + _CONVERSATIONS_AT_ONCE, num_conversations))
            turns = list(_turns(numbers, raters, random))
            file.writelines(_lines(turns, likes, random))
            size["interactions"] += len(turns)
            size["responses"] += sum(turn.num_responses for turn in turns)
    (folder / "size.json").write_text(json.dumps(size))
    return size


def _raters(number: int) -> np.ndarray:
    """The country of every rater; each country has one at least."""
    shares = np.array(list(RATERS.values())) / sum(RATERS.values())
    counts = np.maximum(1, np.round(shares * number)).astype(int)
    return np.repeat(np.arange(len(counts)), counts)


def _turns(numbers: range, raters: np.ndarray, random: np.random.Generator) -> Iterator[_Turn]:
    lengths = np.minimum(1 + random.poisson(TURNS - 1, size=len(numbers)), MAX_TURNS)
    drawn = random.integers(len(raters), size=len(numbers))
    for number, length, rater in zip(numbers, lengths, drawn, strict=True):
        for turn in range(length):
            yield _Turn(number, turn, int(raters[rater]), int(rater), 2 if turn else 4)


def _lines(turns: list[_Turn], likes: np.ndarray, random: np.random.Generator) -> Iterator[str]:
    """One utterance a line."""
    prompts = _texts(PROMPT_CHARACTERS, random, traits=np.full(len(turns), -1))
    of_response = np.repeat(np.arange(len(turns)), [turn.num_responses for turn in turns])
    traits = random.integers(NUM_TRAITS, size=len(of_response))
    responses = _texts(RESPONSE_CHARACTERS, random, traits=traits)
    countries = np.array([turns[index].country for index in of_response])
    utilities = likes[countries, traits] + 0.7 * random.normal(size=len(traits))
    scores = _scores(utilities)
    start = 0
    for number, (turn, prompt) in enumerate(zip(turns, prompts, strict=True)):
        end = start + turn.num_responses
        best = start + int(np.argmax(scores[start:end]))
        for row in range(start, end):
            yield (
                json.dumps(
                    {
                        "user_id": f"user{turn.rater}",
                        "conversation_id": f"c{turn.conversation}",
                        "interaction_id": f"int{turn.conversation}-{turn.turn}",
                        "utterance_id": f"u{turn.conversation}-{turn.turn}-{row - start}",
                        "within_turn_id": row - start,
                        "turn": turn.turn,
                        "model_name": f"model{row - start if turn.turn == 0 else 0}",
                        "user_prompt": prompt,
                        "model_response": responses[row],
                        "score": int(scores[row]),
                        "if_chosen": row == best,
                        "included_in_balanced_subset": True,
                    }
                )
                + "\n"
            )
        assert of_response[start] == number
        start = end


def _texts(characters: tuple[float, float, int], random: np.random.Generator, *, traits: np.ndarray) -> list[str]:
    """A text of gamma-distributed length for each trait; -1 leans nowhere."""
    mean, deviation, longest = characters
    lengths = random.gamma((mean / deviation) ** 2, deviation**2 / mean, size=len(traits)).clip(2, longest)
    counts = np.maximum(1, np.ceil(lengths / _CHARACTERS_PER_WORD * 1.15)).astype(int)  # some to spare, then cut
    words = np.searchsorted(_CUMULATED, random.random(counts.sum()))
    trait_of = np.repeat(traits, counts)
    leans = (trait_of >= 0) & (random.random(len(words)) < TRAIT_SHARE)
    first = len(_ENGLISH) + trait_of[leans] * WORDS_PER_TRAIT  # the rare words begin after the English ones
    words[leans] = first + random.integers(WORDS_PER_TRAIT, size=leans.sum())
    spelled = _VOCABULARY[words].tolist()
    ends = np.cumsum(counts).tolist()
    starts = [0, *ends[:-1]]
    rounded = np.round(lengths).astype(int).tolist()
    return [
        " ".join(spelled[start:end])[:length].rstrip() for start, end, length in zip(starts, ends, rounded, strict=True)
    ]


def _scores(utilities: np.ndarray) -> np.ndarray:
    """1 to 100 with PRISM's mean and deviation, in the order of the utilities."""
    mean, deviation = (SCORE_MEAN - 1) / 99, SCORE_DEVIATION / 99
    concentration = mean * (1 - mean) / deviation**2 - 1
    ranks = (stats.rankdata(utilities) - 0.5) / len(utilities)
    drawn = stats.beta.ppf(ranks, mean * concentration, (1 - mean) * concentration)
    return np.round(1 + 99 * drawn).astype(int)


def _rare_words() -> list[str]:
    words = itertools.chain(itertools.product(_SYLLABLES, repeat=3), itertools.product(_SYLLABLES, repeat=4))
    return ["".join(syllables) for syllables in itertools.islice(words, _NUM_RARE)]


_ENGLISH = Counter(re.findall(r"[a-z]{2,}|\ba\b", " ".join(topics.values()).lower()))
_VOCABULARY = np.array([*_ENGLISH, *_rare_words()], dtype=object)
_ZIPF = 1 / np.arange(1, _NUM_RARE + 1)
_SHARES = np.array([*_ENGLISH.values()]) / _ENGLISH.total() * (1 - _RARE_SHARE), _ZIPF / _ZIPF.sum() * _RARE_SHARE
_CUMULATED = np.cumsum(np.concatenate(_SHARES))
_CUMULATED[-1] = 1.0


if __name__ == "__main__":
    main(*sys.argv[1:])
