"""What a language model is trained on: rows of text, completions and conversations, as tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

ROLES = ("system", "developer", "user", "assistant", "tool")
PROMPT_TOKENS = 32
"""Of a text without a prompt: after so many at most, a sample begins."""


class Tokens(NamedTuple):
    """A row as a model sees it."""

    ids: list[int]
    counted: list[bool]
    """Which of them the loss counts."""
    begins: int
    """Place of the answer, or of the part of a text, that a sample is to write anew."""


class Text(NamedTuple):
    """A text that is counted as a whole, and its end."""

    text: str
    line: int

    def tokens(self, tokenizer: Any, *, everything: bool) -> Tokens:
        return whole([*opening(tokenizer), *_ids(tokenizer, self.text), *_end(tokenizer)])


class Completion(NamedTuple):
    """A text of which the second part, and its end, are counted."""

    prompt: str
    completion: str
    line: int

    def tokens(self, tokenizer: Any, *, everything: bool) -> Tokens:
        start, end = opening(tokenizer), _end(tokenizer)
        ids, starts = _with_places(tokenizer, self.prompt + self.completion)
        prompt = [place < len(self.prompt) for place in starts]
        counted = [not inside for inside in [True] * len(start) + prompt] + [True] * len(end)
        return _answered([*start, *ids, *end], counted, everything)


class Conversation(NamedTuple):
    """Turns, written as the tokenizer's chat template has it; the assistant's are counted."""

    messages: list[dict[str, str]]
    line: int

    def tokens(self, tokenizer: Any, *, everything: bool) -> Tokens:
        """Raises ValueError without a chat template, and for one that rewrites earlier turns."""
        text = self._rendered(tokenizer, len(self.messages))
        ids, starts = _with_places(tokenizer, text)
        spans = self._answers(tokenizer, text, check=not everything)
        counted = [any(a <= place < b for a, b in spans) for place in starts]
        return _answered(ids, counted, everything)

    def _answers(self, tokenizer: Any, text: str, *, check: bool) -> list[tuple[int, int]]:
        """From where to where in `text` the assistant speaks, ends of turns included."""
        spans = []
        for i, message in enumerate(self.messages):
            if message["role"] == "assistant":
                before = self._rendered(tokenizer, i, add_generation_prompt=True)
                until = self._rendered(tokenizer, i + 1)
                if check and not (text.startswith(until) and until.startswith(before)):
                    raise ValueError(
                        f"line {self.line}: the chat template of the tokenizer writes message "
                        f"{i + 1} differently once more messages follow, so that answers cannot "
                        "be told from prompts. Give rows with one answer each, in the end, or "
                        "count all tokens with --train-on-prompts"
                    )
                spans.append((len(before), len(until)))
        return spans

    def _rendered(self, tokenizer: Any, count: int, **options: bool) -> str:
        from jinja2 import TemplateError

        if tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer of the model has no chat template, which messages need: take a "
                "model that was trained for conversations, or give rows of prompt and completion"
            )
        try:
            text: str = tokenizer.apply_chat_template(
                self.messages[:count], tokenize=False, **options
            )
        except TemplateError as error:
            raise ValueError(f"line {self.line}: the chat template refuses it: {error}") from error
        return text


LanguageRow = Text | Completion | Conversation


def whole(ids: list[int]) -> Tokens:
    """A text of which everything is counted."""
    return Tokens(ids, [True] * len(ids), min(PROMPT_TOKENS, len(ids) // 2))


def opening(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if it does so."""
    bos = tokenizer.bos_token_id
    added = tokenizer("")["input_ids"][:1]
    return [bos] if bos is not None and added == [bos] else []


def pieces_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of each text, without any that mark its ends."""
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found


def _answered(ids: list[int], counted: list[bool], everything: bool) -> Tokens:
    """The last run of counted tokens is the answer."""
    last = max((i for i in range(len(ids)) if counted[i]), default=-1)
    begins = last
    while begins > 0 and counted[begins - 1]:
        begins -= 1
    return Tokens(ids, [True] * len(ids) if everything else counted, max(0, begins))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return pieces_of(tokenizer, [text])[0]


def _with_places(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Tokens of a text, and at which character each begins.

    Prompt and answer are one text to the tokenizer, as they are when a model reads them later.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]


def _end(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
