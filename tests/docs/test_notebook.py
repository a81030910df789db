"""The notebook runs, with few steps, and is stored with the outputs of a whole run."""

import os

import nbformat
import pytest
from nbclient import NotebookClient

from pages import DOCS
from rankwise.recipes.builtin import minilm_folder, movie_reviews

PATH = DOCS / "notebook.ipynb"
SHORT = {"STEPS": "2", "ROWS": "20"}


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


# Of jupyter's own event loop and sockets.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    try:
        minilm_folder(), movie_reviews(seed=0)
    except RuntimeError as error:
        pytest.skip(f"the built-in model and data could not be fetched: {error}")
    client = NotebookClient(
        nbformat.from_dict(notebook), timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    done = client.execute(env={**os.environ, **SHORT})
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "runs" / "notebook" / "lora" / "adapter_model.safetensors").is_file()
    last = [cell for cell in done.cells if cell.cell_type == "code"][-1]
    assert len(printed(last).splitlines()) == 2


def test_its_outputs_are_of_a_whole_run_in_order(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("150/150" in printed(cell) for cell in cells)


def test_it_is_small_and_tells_nothing_of_the_machine_it_ran_on(notebook):
    assert PATH.stat().st_size < 300_000
    text = "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert not any(word in text for word in ("/tmp", "/home", "/root", "site-packages", "Warning"))
