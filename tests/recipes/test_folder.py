"""What a folder says of the run in it."""

import pytest

from rankwise.recipes.folder import read_options
from rankwise.recipes.train_options import TrainOptions
from rankwise.recipes.victims import run_options


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_damaged_options_are_told_by_their_file_whoever_reads_them(text, tmp_path):
    file = tmp_path / "options.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"options\.json is damaged"):
        read_options(file)
    with pytest.raises(ValueError, match=r"options\.json is damaged"):
        run_options(tmp_path)


def test_options_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "options.json"
    file.write_text('{"keep": 0.2, "output": "here"}')
    assert TrainOptions.from_json(read_options(file)).keep == 0.2
