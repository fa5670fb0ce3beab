"""The one place where (context, response) becomes token ids: scoring, training, PPO and serving all come here.

Three forms, chosen by the tokenizer:

- encoders (BERT, DeBERTa: a CLS and a SEP token): `[CLS] context [SEP] response [SEP]`;
- decoders with a chat template: the template, context as it stands before a generation, then the assistant's turn;
- other decoders: `[BOS] role: content ... assistant: response [EOS]`.

Context and response are tokenised apart, so a response has the tokens that a policy generated after the same context.
A sequence that is too long loses the context's oldest tokens; the response is cut, at its end, only when it alone is
too long.
"""

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from jinja2 import TemplateError
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from scpo_ray.config import FormatConfig
from scpo_ray.core.batching import round_up
from scpo_ray.errors import DataError, ModelError
from scpo_ray.records import Message, content_id

FORMATTER_VERSION = 1
_DATE = datetime.date(2024, 7, 26)
"""What templates that write today's date are given: the same tokens on every day. Llama's own fallback."""


@dataclass(frozen=True)
class TokenSequence:
    """One formatted (context, response)."""

    input_ids: list[int]
    token_type_ids: list[int] | None
    truncated: bool


class Formatter:
    """Formats for one tokenizer; cheap to make, safe to share between calls.

    Raises:
        ModelError: the tokenizer is not a fast one, or has no token to pad with.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: FormatConfig) -> None:
        if not tokenizer.is_fast:
            raise ModelError(f"{tokenizer.name_or_path}: only fast tokenizers (tokenizer.json) are supported")
        self._tokenizer = tokenizer
        self.config = config
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._uses_template = config.use_chat_template == "auto" and bool(tokenizer.chat_template)
        self._is_encoder = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        self.pad_token_id = pad_token_id(tokenizer)

    @property
    def identity(self) -> str:
        """Changes with everything but the tokenizer's vocabulary that the token ids depend on."""
        template = self._tokenizer.chat_template if self._uses_template else None
        dated = (_DATE.isoformat(),) if template is not None and "strftime_now" in template else ()
        return content_id(FORMATTER_VERSION, self.config.max_tokens, template, *dated)

    def format(self, contexts: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[TokenSequence]:
        """Token ids for each (context, response).

        Raises:
            DataError: a response or a context is empty, or the chat template rejects a context.
        """
        for context, response in zip(contexts, responses, strict=True):
            if not context or not response.strip():
                raise DataError(
                    f"context {str(list(context))[:60]!r}, response {response[:40]!r}: both must be non-empty"
                )
        if self._uses_template:
            texts = [self._template(context, response) for context, response in zip(contexts, responses, strict=True)]
        else:
            texts = [(self._plain(context), response) for context, response in zip(contexts, responses, strict=True)]
        heads = self._backend.encode_batch([text[0] for text in texts], add_special_tokens=False)
        tails = self._backend.encode_batch([text[1] for text in texts], add_special_tokens=False)
        return [self._join(head, tail) for head, tail in zip(heads, tails, strict=True)]

    def whole(self, text: str) -> TokenSequence:
        """Token ids of a text that has the model's template in it already, as other frameworks send it; cut at its start.

        Raises:
            DataError: the text is blank.
        """
        if not text.strip():
            raise DataError(f"text {text[:40]!r}: must be non-empty")
        encoding = self._backend.encode(text, add_special_tokens=False)
        room = self.config.max_tokens
        if not self._uses_template:
            room -= self._backend.num_special_tokens_to_add(is_pair=False)
        truncated = len(encoding) > room
        if truncated:
            encoding.truncate(room, direction="left")
        if not self._uses_template:
            encoding = self._backend.post_process(encoding)
        has_types = "token_type_ids" in self._tokenizer.model_input_names and self._is_encoder
        return TokenSequence(encoding.ids, encoding.type_ids if has_types else None, truncated)

    def prompts(self, contexts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids after which a policy writes its response, whole: nothing is cut.

        Raises:
            DataError: a context is empty.
            ModelError: the tokenizer is an encoder's, which writes nothing.
        """
        self._refuse_encoder()
        if not all(contexts):
            raise DataError("a prompt has no message; give each at least one")
        texts = [self._head(context) if self._uses_template else self._plain(context) for context in contexts]
        heads = self._backend.encode_batch(texts, add_special_tokens=False)
        return [[*self._start_ids(), *head.ids] for head in heads]

    def exchanges(
        self, contexts: Sequence[Sequence[Message]], responses: Sequence[str], *, stop_token_ids: Collection[int]
    ) -> list[tuple[list[int], list[int]]]:
        """(prompt, response) token ids, whole; the response with the token that ends it, which a policy must learn to write.

        Args:
            stop_token_ids: tokens that end a response; the plain format writes the tokenizer's own.

        Raises:
            ModelError: the tokenizer is an encoder's, or its template ends a turn without such a token.
        """
        found = []
        for prompt, context, response in zip(self.prompts(contexts), contexts, responses, strict=True):
            tail = self._template(context, response)[1] if self._uses_template else response
            ids = self._backend.encode(tail, add_special_tokens=False).ids
            if not self._uses_template:
                ids = [*ids, self._tokenizer.eos_token_id]
            end = next((place for place, token in enumerate(ids) if token in stop_token_ids), None)
            if end is None:
                raise ModelError(
                    f"{self._tokenizer.name_or_path}: the chat template ends a turn without an end-of-sequence token, so a "
                    "policy could not learn where to stop; set format.use_chat_template to never"
                )
            found.append((prompt, ids[: end + 1]))
        return found

    def _refuse_encoder(self) -> None:
        if self._is_encoder:
            raise ModelError(f"{self._tokenizer.name_or_path}: an encoder's tokenizer; a policy is a decoder, give one")

    def _start_ids(self) -> list[int]:
        bos = self._tokenizer.bos_token_id
        return [] if self._uses_template or bos is None else [bos]

    def pad(self, sequences: Sequence[TokenSequence], *, multiple: int = 1) -> dict[str, Int[Tensor, "rows length"]]:
        """Model inputs, padded on the right to the longest sequence, rounded up to `multiple` tokens."""
        length = round_up(max(len(sequence.input_ids) for sequence in sequences), multiple)
        input_ids = torch.full((len(sequences), length), self.pad_token_id, dtype=torch.long)
        attention_mask = torch.zeros((len(sequences), length), dtype=torch.long)
        token_type_ids = torch.zeros((len(sequences), length), dtype=torch.long)
        for row, sequence in enumerate(sequences):
            size = len(sequence.input_ids)
            input_ids[row, :size] = torch.tensor(sequence.input_ids)
            attention_mask[row, :size] = 1
            if sequence.token_type_ids is not None:
                token_type_ids[row, :size] = torch.tensor(sequence.token_type_ids)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs | ({"token_type_ids": token_type_ids} if sequences[0].token_type_ids is not None else {})

    def _template(self, context: Sequence[Message], response: str) -> tuple[str, str]:
        messages = [dict(message) for message in context]
        head = self._head(context)
        full = self._rendered([*messages, {"role": "assistant", "content": response}])
        if not full.startswith(head) and context[-1]["role"] == "assistant":
            raise DataError(
                "context: ends with the assistant's turn, which this model's chat template writes differently once it is "
                "answered; end it with the user's"
            )
        if not full.startswith(head):
            raise ModelError(
                f"{self._tokenizer.name_or_path}: the chat template writes a context differently once it is answered; "
                "set format.use_chat_template to never"
            )
        return head, full[len(head) :]

    def _head(self, context: Sequence[Message]) -> str:
        return self._rendered([dict(message) for message in context], add_generation_prompt=True)

    def _rendered(self, messages: list[dict], *, add_generation_prompt: bool = False) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, strftime_now=_fixed_date
            )
        except TemplateError as error:
            raise DataError(
                f"{self._tokenizer.name_or_path}: its chat template refuses a context of roles "
                f"{', '.join(message['role'] for message in messages)} ({str(error).splitlines()[0][:120]}); leave such contexts "
                "out, or set format.use_chat_template to never"
            ) from None

    def _plain(self, context: Sequence[Message]) -> str:
        if self._is_encoder and len(context) == 1:
            return context[0]["content"]
        turns = "\n".join(f"{message['role']}: {message['content']}" for message in context)
        return turns if self._is_encoder else f"{turns}\nassistant: "

    def _join(self, head: Encoding, tail: Encoding) -> TokenSequence:
        room = self.config.max_tokens - self._num_special_tokens()
        num_tail = min(len(tail), room)
        num_head = min(len(head), room - num_tail)
        truncated = num_head < len(head) or num_tail < len(tail)
        if truncated:
            tail.truncate(num_tail, direction="right")
            head.truncate(num_head, direction="left")
        if self._is_encoder and not self._uses_template:
            joined = self._backend.post_process(head, tail)
            type_ids = joined.type_ids if "token_type_ids" in self._tokenizer.model_input_names else None
            return TokenSequence(joined.ids, type_ids, truncated)
        ids = [*head.ids, *tail.ids]
        if not self._uses_template:
            bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
            ids = [*([] if bos is None else [bos]), *ids, *([] if eos is None else [eos])]
        return TokenSequence(ids, None, truncated)

    def _num_special_tokens(self) -> int:
        if self._uses_template:
            return 0
        if self._is_encoder:
            return self._backend.num_special_tokens_to_add(is_pair=True)
        return (self._tokenizer.bos_token_id is not None) + (self._tokenizer.eos_token_id is not None)


def _fixed_date(form: str) -> str:
    return _DATE.strftime(form)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows: the tokenizer's own, or its end-of-sequence token, as decoders without one use.

    Raises:
        ModelError: the tokenizer has neither.
    """
    for identifier in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if identifier is not None:
            return int(identifier)
    raise ModelError(f"{tokenizer.name_or_path}: no padding and no end-of-sequence token; set pad_token in its config")
