"""Files that users bring: what is read, and what is said about what cannot be."""

from pathlib import Path

import pytest

from rankwise.recipes.tables import read_dataset, read_rows


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, **options):
    defaults = {
        "text_column": None,
        "label_column": None,
        "eval_path": None,
        "eval_fraction": 0.5,
        "seed": 0,
    }
    return read_dataset(path, **{**defaults, **options})


SAME = {
    "a.csv": 'text,label\n"one, two",1\nthree,0\nfour,1\nfive,0\n',
    "a.tsv": "label\ttext\n1\tone, two\n0\tthree\n1\tfour\n0\tfive\n",
    "a.jsonl": '{"text": "one, two", "label": 1}\n{"text": "three", "label": 0}\n\n'
    '{"text": "four", "label": 1.0}\n{"text": "five", "label": 0}\n',
    "b.csv": '\ufefftext,label\r\n"one, two",1\r\nthree,0\r\nfour,1\r\nfive,0\r\n',
}


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_same_rows(name, tmp_path):
    rows = read_rows(written(tmp_path, name, SAME[name]), None, None)
    assert [(row.text, row.label) for row in rows] == [
        ("one, two", "1"),
        ("three", "0"),
        ("four", "1"),
        ("five", "0"),
    ]


def test_integer_labels_are_ordered_as_numbers_and_strings_by_name(tmp_path):
    numbers = "text,label\n" + "".join(f"t{i},{i % 11}\n" for i in range(110))
    assert read(written(tmp_path, "n.csv", numbers)).classes == tuple(map(str, range(11)))
    words = "text,label\n" + "a,up\nb,down\n" * 9
    assert read(written(tmp_path, "w.csv", words)).classes == ("down", "up")


def test_held_out_rows_are_others_and_depend_on_the_seed_alone(tmp_path):
    content = "text,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(40))
    path = written(tmp_path, "a.csv", content)
    one, again, other = (read(path, eval_fraction=0.25, seed=s) for s in (1, 1, 2))
    assert one == again and one != other
    assert len(one.held_out) == 10
    assert not set(one.train) & set(one.held_out)


def test_a_line_number_is_that_of_the_file_after_a_text_of_two_lines(tmp_path):
    path = written(tmp_path, "a.csv", 'text,label\n"one\ntwo",1\nthree,\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 4: column 'label' has no value"):
        read(path)


BROKEN = [
    ("a.csv", "text,label\none,1\ntwo,1\n", "all 2 rows have the label '1'"),
    ("a.csv", "text,label\none,1\n ,0\n", "line 3: column 'text' has no value"),
    ("a.csv", "text,label\none,1,2\n", "line 2: 3 columns, the header has 2"),
    ("a.csv", "text,text\none,1\n", "line 1: column 'text' is there twice"),
    ("a.csv", "", "the first line must name the columns"),
    ("a.csv", "text,label\n", "there are no rows"),
    ("a.csv", "words,label\na,1\n", "none of the columns 'words', 'label' .* --text-column"),
    ("a.csv", "text,body,label\na,b,1\n", "more than one of the columns"),
    ("a.csv", b"text,label\n\xff\xfe,1\n", "not UTF-8"),
    ("a.txt", "text,label\n", "must end in .csv, .tsv or .jsonl"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2 is damaged"),
    ("a.jsonl", "[1]\n", "line 1 is damaged: it holds no JSON object"),
    ("a.jsonl", '{"text": "a", "label": null}\n', "line 1: column 'label' has no value"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n', "line 2: column 'text' has no value"),
]


@pytest.mark.parametrize("name, content, message", BROKEN)
def test_what_is_wrong_is_named_with_its_line_and_column(name, content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, name, content))


def test_a_named_column_must_exist_and_be_another(tmp_path):
    path = written(tmp_path, "a.csv", SAME["a.csv"])
    with pytest.raises(ValueError, match="no column 'txt'; the columns are 'text', 'label'"):
        read(path, text_column="txt")
    with pytest.raises(ValueError, match="text and label at once"):
        read(path, text_column="label")


def test_a_label_that_training_never_sees_is_refused(tmp_path):
    train = written(tmp_path, "a.csv", SAME["a.csv"])
    held_out = written(tmp_path, "e.csv", "text,label\none,0\ntwo,7\n")
    with pytest.raises(ValueError, match=r"e\.csv, line 3: label '7' does not occur"):
        read(train, eval_path=held_out)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no file 'nowhere.csv'"):
        read(Path("nowhere.csv"))
