"""The notebooks of docs/tour: stored without outputs, and they run, one after the other in one kernel, on the built-in set."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient, nbformat and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient, nbformat and ipykernel")
pytest.importorskip("ipykernel", reason="needs nbclient, nbformat and ipykernel")

TOUR = Path(__file__).parent.parent / "docs" / "tour"
NAMES = ("start", "own-data", "mask", "compare", "export")
SLOW = {"compare": (), "export": ("onnx", "onnxscript", "onnxruntime")}  # with the packages that they need
NOTEBOOKS = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NAMES]
# What a notebook claims and its outputs show.
SAYS = {
    "start": [r"same class: (3[6-9]|4\d) of 48"],
    "own-data": [
        r"broken\.ply: cannot be read",
        "status 2\n",
        r"\(6, 128\)",
        r"transformed: cosine with the right features 1\.000",
    ],
    "mask": ["patches hidden 75%", r"ratio 0\.9: 4\d% of the points", "block: ", "lower part: "],
    "compare": [
        r"point-m2ae: trained less untrained \+.* interval \+",
        r"point-mae: trained less untrained \+.* interval \+",
    ],
    "export": ["largest difference 0.0", "differs from the model by", r"largest difference from PyTorch \d"],
}


def read(name: str):
    return nbformat.read(TOUR / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_run():
    assert sorted(path.stem for path in TOUR.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stored_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, cell.source[:60]


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_short_and_say_what_they_do(name):
    cells = read(name).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for cell in cells:
        lines = cell.source.splitlines()
        assert len(lines) <= 26 and max(map(len, lines)) <= (120 if cell.cell_type == "code" else 100), cell.source[:60]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a function that runs a notebook, all in one kernel."""
    from docs.hooks.notebooks import kernel

    with kernel(TOUR, tmp_path_factory.mktemp("tour")) as run:
        yield run


@pytest.mark.xdist_group("tour")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name, run):
    for package in SLOW.get(name, ()):
        pytest.importorskip(package)
    notebook = read(name)
    run(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures or name == "export"
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not re.search(r"Traceback|Warning|WARNING", said), said
    for wanted in SAYS[name]:
        assert re.search(wanted, said), f"{wanted}\n{said}"
