"""How much one request may ask for: the service's settings, applied."""

from collections.abc import Sequence

from scpo_ray.config.serving import ServeConfig
from scpo_ray.errors import DataError
from scpo_ray.serving.schemas import Question


def check_question(question: Question, config: ServeConfig) -> None:
    """The conversation.

    Raises:
        DataError: too many messages, or one that is too long.
    """
    if len(question.context) > config.max_messages:
        raise DataError(f"messages: {len(question.context)}, at most {config.max_messages}; leave the oldest out")
    _check_lengths("messages", [message["content"] for message in question.context], config)


def check_texts(place: str, texts: Sequence[str], config: ServeConfig) -> None:
    """Responses, or what takes their place.

    Raises:
        DataError: too many, or one that is too long.
    """
    if len(texts) > config.max_responses:
        raise DataError(f"{place}: {len(texts)}, at most {config.max_responses}; send several requests")
    _check_lengths(place, texts, config)


def _check_lengths(place: str, texts: Sequence[str], config: ServeConfig) -> None:
    for index, text in enumerate(texts):
        if len(text) > config.max_text_chars:
            raise DataError(
                f"{place}[{index}]: {len(text)} characters, at most {config.max_text_chars}; send a shorter text"
            )
