"""Which tokens of a conversation or a completion the loss counts."""

import pytest
import torch
from torch import nn

from language_models import LAST_ONLY, llama, tokenizer, turns
from rankwise.recipes.language import loss_of
from rankwise.recipes.language_rows import Completion, Conversation, Text, Tokens


def counted(tokens: Tokens, words) -> str:
    return words.decode([t for t, c in zip(tokens.ids, tokens.counted, strict=True) if c])


def conversation(*contents: str) -> Conversation:
    return Conversation(turns(*contents)["messages"], line=7)


def test_of_a_conversation_the_answers_and_their_ends_count():
    words = tokenizer()
    row = conversation("one two", "red", "five", "blue green")
    tokens = row.tokens(words, everything=False)
    assert words.decode(tokens.ids) == (
        "<|user|>one two<|end|><|assistant|>red<|end|>"
        "<|user|>five<|end|><|assistant|>blue green<|end|>"
    )
    assert counted(tokens, words) == "red<|end|>blue green<|end|>"
    assert words.decode(tokens.ids[tokens.begins :]) == "blue green<|end|>"
    everything = row.tokens(words, everything=True)
    assert (everything.ids, everything.begins) == (tokens.ids, tokens.begins)
    assert all(everything.counted)


def test_of_a_completion_the_second_part_and_its_end_count():
    words = tokenizer()
    tokens = Completion("one two", " red", 1).tokens(words, everything=False)
    assert words.decode(tokens.ids) == "one two red<|end|>"
    assert counted(tokens, words) == " red<|end|>"


def test_tokens_are_those_of_the_whole_text_and_not_of_its_parts():
    words = tokenizer()
    tokens = Completion("thr", "ee", 1).tokens(words, everything=False)
    assert tokens.ids[:-1] == words("three")["input_ids"]
    assert counted(tokens, words) == "<|end|>"  # The one token of the text begins in the prompt.


def test_a_tokenizer_that_opens_texts_opens_them_and_no_conversation():
    words = tokenizer(opening=True)
    start = words.bos_token_id
    for row in (Text("one", 1), Completion("one", "two", 1)):
        assert row.tokens(words, everything=False).ids.count(start) == 1
    assert start not in conversation("one", "two").tokens(words, everything=False).ids


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_all_counts():
    words = tokenizer(LAST_ONLY)
    row = conversation("one", "two", "three", "four")
    with pytest.raises(ValueError, match="line 7: the chat template .* message 2 differently"):
        row.tokens(words, everything=False)
    assert all(row.tokens(words, everything=True).counted)
    one_answer = conversation("one", "two").tokens(words, everything=False)
    assert counted(one_answer, words) == "two<|end|>"


def test_messages_need_a_chat_template():
    with pytest.raises(ValueError, match="no chat template, which messages need"):
        conversation("one", "two").tokens(tokenizer(None), everything=False)


def test_what_a_template_refuses_is_told_with_its_line():
    words = tokenizer("{{ raise_exception('turns must alternate') }}")
    with pytest.raises(ValueError, match="line 7: the chat template refuses it: turns must alt"):
        conversation("one", "two").tokens(words, everything=False)


def test_loss_and_gradients_are_those_of_labels_masked_by_hand():
    words, model = tokenizer(), llama().double()
    tokens = conversation("one two", "red blue").tokens(words, everything=False)
    loss_of(model, [[tokens]]).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    prompt = words("<|user|>one two<|end|><|assistant|>")["input_ids"]
    answer = words("red blue<|end|>")["input_ids"]
    assert tokens.ids == prompt + answer
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
    by_hand = nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(answer))
    by_hand.backward()
    torch.testing.assert_close(loss_of(model, [[tokens]]), by_hand, atol=1e-12, rtol=0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, atol=1e-12, rtol=1e-12)
