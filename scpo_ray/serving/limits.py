"""How much one request may ask for: the service's settings, applied."""

from collections.abc import Sequence

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import DataError
from scpo_ray.serving.rewards import Text


def check_texts(place: str, texts: Sequence[Text], config: ServeConfig) -> None:
    """Responses (or what takes their place) with their conversations.

    Raises:
        DataError: too many, or too long, one by one or together.
    """
    if len(texts) > config.max_responses:
        raise DataError(f"{place}: {len(texts)}, at most {config.max_responses}; send several requests")
    total = 0
    for index, text in enumerate(texts):
        if len(text.context) > config.max_messages:
            raise DataError(f"messages: {len(text.context)}, at most {config.max_messages}; leave the oldest out")
        lengths = [len(message["content"]) for message in text.context]
        for number, length in enumerate(lengths):
            _check_length(f"messages[{number}]", length, config)
        _check_length(f"{place}[{index}]", len(text.response), config)
        total += sum(lengths) + len(text.response)
    if total > config.max_total_chars:
        raise DataError(
            f"{place}: {total} characters with their conversations, at most {config.max_total_chars}; send fewer responses at a "
            "time, or leave the oldest messages out"
        )


def _check_length(place: str, length: int, config: ServeConfig) -> None:
    if length > config.max_text_chars:
        raise DataError(f"{place}: {length} characters, at most {config.max_text_chars}; send a shorter text")
