"""What a folder says of the run in it."""

import pytest

from rankwise.recipes.federate_options import FederateOptions
from rankwise.recipes.folder import prepared, read_options
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


@pytest.mark.parametrize("text", ["{}", '{"output": 3, "compare": []}', '{"rounds": "x"}'])
@pytest.mark.parametrize("command", [FederateOptions, TrainOptions])
def test_options_that_cannot_be_are_told_when_the_run_is_resumed(command, text, tmp_path):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(ValueError, match=r"options\.json is (damaged|of another command)"):
        prepared(command(output=tmp_path, resume=True))


def test_options_are_read_as_they_were_written(tmp_path):
    file = tmp_path / "options.json"
    file.write_text('{"keep": 0.2, "output": "here"}')
    assert TrainOptions.from_json(read_options(file)).keep == 0.2
