"""Notebooks of the documentation run from the first cell to the last, and are stored without outputs."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs/notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def first_hour(tmp_path_factory) -> nbformat.NotebookNode:
    """The notebook after it was run with few steps."""
    folder = tmp_path_factory.mktemp("notebook")
    (path,) = (path for path in NOTEBOOKS if path.stem == "first_hour")
    notebook = nbformat.read(path, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRST_HOUR_STEPS", "1024")
        # what draws the pictures of a notebook
        patch.delenv("MPLBACKEND", raising=False)
        # an error in a cell is raised here
        nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    assert {path.name for path in folder.iterdir()} == {"first_hour.zip", "first_hour.onnx", "first_hour.pt2"}
    return notebook


def outputs(notebook: nbformat.NotebookNode, word: str) -> list[nbformat.NotebookNode]:
    """Outputs of the only cell with that word."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and word in cell.source)
    return cell.outputs


def test_first_hour_prints_groups_and_tasks(first_hour):
    (groups,) = outputs(first_hour, "model.groups")
    assert [line.partition(":")[0] for line in groups.text.splitlines()] == [f"cells [{cell}]" for cell in range(4)]
    (tasks,) = outputs(first_hour, "results = evaluate_groups")
    assert [line.partition(":")[0] for line in tasks.text.splitlines()] == [f"task {task}" for task in range(4)]


def test_first_hour_has_a_picture(first_hour):
    assert "image/png" in outputs(first_hour, "plt.show")[-1].data


def test_first_hour_warns_of_nothing(first_hour):
    streams = [output for cell in first_hour.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert streams == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 3
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
