"""Small files in PRISM's published schema, for every test that needs PRISM: the data itself cannot be had here."""

import json
import random
from pathlib import Path

MODELS = ("claude-2", "command", "flan-t5-xxl", "gpt-4", "llama-2-7b-chat", "mistral-7b")
TOPICS = ("tipping in restaurants", "an early retirement", "arranged marriage", "free speech", "eating meat", "my boss")
QUESTIONS = ("What do you think about {topic}?", "Tell me why {topic} matters.", "Is {topic} right or wrong?")
OPENINGS = (
    "I have no opinion of my own, but",
    "To be frank,",
    "Many people feel that",
    "As a language model I think that",
)
CLAIMS = ("{topic} depends on where you live", "{topic} is worth defending", "{topic} does more harm than good")
CONVERSATION_TYPES = ("unguided", "values guided", "controversy guided")
TIE_RATE = 0.15


def write_prism(folder: Path, *, num_annotators_by_country: dict[str, int], seed: int) -> None:
    """Write `survey.jsonl` and `utterances.jsonl`: the same bytes for the same arguments.

    Every annotator has two to four conversations of one to three turns. Opening turns have 4 responses of different
    models, later turns 2 of the chosen one; some of a turn's scores are tied.
    """
    generator = random.Random(seed)
    countries = [country for country, number in num_annotators_by_country.items() for _ in range(number)]
    survey = [_participant(generator, f"user{index}", country) for index, country in enumerate(countries)]
    utterances: list[dict] = []
    num_conversations = 0
    for participant in survey:
        for _ in range(generator.randint(2, 4)):
            _converse(generator, utterances, participant["user_id"], f"c{num_conversations}")
            num_conversations += 1
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "survey.jsonl", survey)
    write_jsonl(folder / "utterances.jsonl", utterances)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _participant(generator: random.Random, user_id: str, country: str) -> dict:
    religion = generator.choice(["No Affiliation", "Christian", "Muslim", "Prefer not to say"])
    return {
        "user_id": user_id,
        "age": generator.choice(["18-24 years old", "25-34 years old", "55-64 years old"]),
        "gender": generator.choice(["Female", "Male"]),
        "education": generator.choice(["Completed Secondary School", "University Bachelors Degree"]),
        "employment_status": generator.choice(["Working full-time", "Student"]),
        "religion": {"self_described": religion.lower(), "categorised": religion, "simplified": religion},
        "ethnicity": {"self_described": "mixed", "categorised": "Mixed", "simplified": "Mixed"},
        "location": {
            "birth_country": country,
            "reside_country": country,
            "reside_subregion": f"Around {country}",
            "same_birth_reside_country": "Yes",
        },
    }


def _converse(generator: random.Random, utterances: list[dict], user_id: str, conversation_id: str) -> None:
    topic = generator.choice(TOPICS)
    conversation_type = generator.choice(CONVERSATION_TYPES)
    is_balanced = generator.random() < 0.8
    models = generator.sample(MODELS, 4)
    for turn in range(generator.randint(1, 3)):
        scores = [generator.randint(1, 100) for _ in models]
        if generator.random() < TIE_RATE:
            scores[1] = scores[0]
        chosen = scores.index(max(scores))
        question = generator.choice(QUESTIONS).format(topic=topic)
        interaction_id = f"int-{conversation_id}-{turn}"
        for within_turn_id, (model, score) in enumerate(zip(models, scores, strict=True)):
            utterances.append(
                {
                    "utterance_id": f"ut{len(utterances)}",
                    "interaction_id": interaction_id,
                    "conversation_id": conversation_id,
                    "user_id": user_id,
                    "turn": turn,
                    "within_turn_id": within_turn_id,
                    "conversation_type": conversation_type,
                    "user_prompt": f"{question} ({conversation_id}, {turn})",
                    "model_response": _response(generator, topic, within_turn_id),
                    "model_name": model,
                    "model_provider": "provider",
                    "score": score,
                    "if_chosen": within_turn_id == chosen,
                    "included_in_balanced_subset": is_balanced,
                }
            )
        models = [models[chosen]] * 2


def _response(generator: random.Random, topic: str, number: int) -> str:
    claim = generator.choice(CLAIMS).format(topic=topic)
    return f"{generator.choice(OPENINGS)} {claim}; that is my point {number + 1}."
