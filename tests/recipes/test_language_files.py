"""Files for a language model, what is wrong with them, and which kind of job they ask for."""

import json

import pytest

from language_models import conversations, json_lines, tokenizer, turns
from rankwise.recipes.language_data import language_data, passages
from rankwise.recipes.language_files import read_language, read_paragraphs
from rankwise.recipes.language_rows import Completion, Conversation, Text
from rankwise.recipes.options import FinetuneOptions
from rankwise.recipes.task import task_of

USER = {"role": "user", "content": "one"}
ANSWER = {"role": "assistant", "content": "two"}


def test_each_form_is_read_into_its_rows(tmp_path):
    rows = {
        Conversation: turns("one", "two"),
        Completion: {"prompt": "", "completion": "two"},
        Text: {"text": "one two"},
    }
    for kind, row in rows.items():
        (found,) = read_language(json_lines(tmp_path / "rows.jsonl", [row]))
        assert type(found) is kind and found.line == 1


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": []}, "line 1: 'messages' must be a list of turns"),
        ({"messages": "hello"}, "'messages' must be a list of turns, got 'hello'"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, "message 2: 'role' must be one of"),
        ({"messages": [USER, {"from": "gpt", "value": "x"}]}, '{"role": ..., "content": ...}'),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "must be a text, got None"),
        ({"messages": [USER]}, "no message is the assistant's, so there is nothing to learn"),
        ({"messages": [ANSWER, USER]}, "the first message is the assistant's"),
        ({"prompt": "a", "completion": " "}, "'completion' must be a text, got ' '"),
        ({"prompt": 3, "completion": "b"}, "'prompt' must be a text, got 3"),
        ({"text": ""}, "'text' must be a text, got ''"),
        ({"question": "a"}, "the first row has 'question'"),
        ({"text": "a", "messages": [USER, ANSWER]}, "messages as well as text"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_line(tmp_path, row, message):
    path = json_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match="rows.jsonl") as caught:
        read_language(path)
    assert message in str(caught.value)


def test_a_later_row_of_another_form_is_found(tmp_path):
    path = json_lines(tmp_path / "rows.jsonl", [{"text": "a"}, {"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError, match="line 2: 'text' must be a text, got None"):
        read_language(path)


def test_a_text_is_read_by_paragraphs_or_else_by_lines(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\n\r\nthree\r\n")
    assert read_paragraphs(path) == ["one\ntwo\n\n", "three\n\n"]
    path.write_text("one\ntwo \n")
    assert read_paragraphs(path) == ["one\n", "two\n"]
    path.write_text(" \n")
    with pytest.raises(ValueError, match="there is no text"):
        read_paragraphs(path)
    path.write_bytes("größer".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8 text .* at byte 2"):
        read_paragraphs(path)


@pytest.mark.parametrize("opening", [False, True])
def test_passages_hold_whole_pieces_and_together_every_token(opening):
    words = tokenizer(opening=opening)
    lines = ["one two\n", "three\n", "four five six red\n", "blue " * 30 + "\n", "white\n"]
    found = passages(words, lines, 12)
    assert all(len(passage.ids) <= 12 and all(passage.counted) for passage in found)
    texts = [words.decode(passage.ids[opening:]) for passage in found]
    assert "".join(texts) == "".join(lines)
    assert all(passage.ids[0] == words.bos_token_id for passage in found) or not opening


@pytest.mark.parametrize(
    "row, options, task",
    [
        (turns("one", "two"), {}, "language"),
        ({"prompt": "a", "completion": "b", "id": 3}, {}, "language"),
        ({"text": "a"}, {}, "language"),
        ({"text": "a", "label": 1}, {}, "classifier"),
        ({"text": "a", "stars": 1}, {"label_column": "stars"}, "classifier"),
        ({"text": "a", "url": "b"}, {"task": "language"}, "language"),
    ],
)
def test_the_kind_of_job_is_seen_from_the_columns(tmp_path, row, options, task):
    path = json_lines(tmp_path / "rows.jsonl", [row])
    assert task_of(FinetuneOptions(data=str(path), **options)) == task


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "a", "url": "b"}, "whether the others are labels is not clear"),
        ({"prompt": "a", "completion": "b", "label": True}, "answers of a language model and lab"),
        ({"conversations": []}, "neither labelled texts .* nor rows for a language model"),
    ],
)
def test_data_that_could_be_both_or_neither_are_refused(tmp_path, row, message):
    path = json_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        task_of(FinetuneOptions(data=str(path)))


@pytest.mark.parametrize("name", ["notes.md", "notes.pdf"])
def test_other_files_are_refused_with_the_names_that_are_read(tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.txt or \.jsonl .*\.csv"):
        task_of(FinetuneOptions(data=str(tmp_path / name)))


def test_a_misspelt_name_of_the_built_in_text_is_told():
    with pytest.raises(ValueError, match="did you mean king-james"):
        task_of(FinetuneOptions(data="king-jmaes"))


def test_a_misspelt_file_is_missing_and_an_empty_one_has_no_rows(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        task_of(FinetuneOptions(data=str(tmp_path / "nots.txt")))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="there are no rows"):
        task_of(FinetuneOptions(data=str(tmp_path / "empty.jsonl")))


@pytest.mark.parametrize("length", [8, 64])
def test_long_conversations_are_cut_or_left_out_and_both_are_counted(tmp_path, length):
    rows = conversations(20) + [turns("one " * 80, "two"), turns("two", "one " * 80)]
    path = json_lines(tmp_path / "chat.jsonl", rows)
    options = FinetuneOptions(data=str(path), eval_data=path, task="language")
    data = language_data(options, tokenizer(), length)
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    tokens = [Conversation(r["messages"], 1).tokens(tokenizer(), everything=False) for r in whole]
    cut = [t for t in tokens if len(t.ids) > length]
    out = [t for t in cut if not any(t.counted[1:length])]
    assert 0 < len(out) < len(cut)
    assert data.facts["cut_examples"] == len(cut)
    assert data.facts["left_out_examples"] == len(out)
    assert data.facts["examples"] == len(rows) - len(out)
    assert all(sum(len(e.ids) for e in row) <= length for row in data.train)


def test_long_texts_are_split_and_lose_nothing(tmp_path):
    path = json_lines(tmp_path / "rows.jsonl", [{"text": "one two " * 30}, {"text": "red"}])
    options = FinetuneOptions(data=str(path), eval_data=path, task="language", pack=False)
    data = language_data(options, tokenizer(), 10)
    whole = sum(len(tokenizer()(t)["input_ids"]) + 1 for t in ("one two " * 30, "red"))
    assert data.facts["tokens"] == whole and data.facts["cut_examples"] == 0
