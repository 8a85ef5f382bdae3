"""A tokenizer of bytes, with chat templates of several kinds."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

END, BEGIN = "<|end|>", "<|begin|>"
CHATML = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "<|assistant|>\n{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
STRICT = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% endfor %}" + CHATML
)
# earlier answers lose what the last one has, as in templates of models that think
THINKING = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n"
    "{% if loop.last and message['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_tokenizer(
    template: str | None = CHATML, *, begin: bool = False, words: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A token per byte.

    Args:
        template: the chat template.
        begin: whether a beginning-of-sequence token stands before each text.
        words: words that are one token each, with the space before them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: place for place, symbol in enumerate(alphabet)}
    merges = []
    for word in words:
        symbols = list(word.replace(" ", "Ġ"))
        while len(symbols) > 1:
            pair = symbols[0], symbols[1]
            if "".join(pair) not in vocabulary:
                vocabulary["".join(pair)] = len(vocabulary)
                merges.append(pair)
            symbols[:2] = ["".join(pair)]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = [BEGIN, END, "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    inner.add_special_tokens([AddedToken(token, special=True) for token in special])
    if begin:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, inner.token_to_id(BEGIN))]
        )
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=END, pad_token="<|pad|>"
    )
    found.chat_template = template
    return found
