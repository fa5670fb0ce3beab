"""Requests as long as PRISM's first turns: a prompt and four responses, no text twice."""

from collections.abc import Iterator, Sequence

import numpy as np

COMMON_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were her all their has would we when if so no said what up its about into than them can only other new some could time
these two may then do first any my now such like our over man me even most made after also did many before must through
back years where much your way well down should because each just those people how too little state good very make world
still own see men work long get here between both life being under never day same another know while last might us great
""".split()  # noqa: SIM905
NUM_RESPONSES = 4


def interactions(number: int, *, seed: int) -> list[tuple[str, list[str]]]:
    """(prompt, responses). Characters are gamma-distributed with PRISM's means and deviations: 70 and 62, 565 and 388."""
    generator = np.random.default_rng([seed, 23])
    return [
        (_text(generator, 69.9, 62.0), [_text(generator, 565.3, 387.9) for _ in range(NUM_RESPONSES)])
        for _ in range(number)
    ]


def requests(number: int, communities: Sequence[str], *, seed: int) -> Iterator[dict]:
    """Bodies for /v1/score, each for one community drawn at random."""
    drawn = np.random.default_rng([seed, 29]).choice(list(communities), size=number)
    for (prompt, responses), community in zip(interactions(number, seed=seed), drawn, strict=True):
        yield {"prompt": prompt, "responses": responses, "communities": [str(community)], "scale": "raw"}


def _text(generator: np.random.Generator, mean: float, deviation: float) -> str:
    size = max(8.0, generator.gamma((mean / deviation) ** 2, deviation**2 / mean))
    words = generator.choice(COMMON_WORDS, size=max(2, round(size / 5.1)))
    return " ".join(words.tolist())[: round(size)]
