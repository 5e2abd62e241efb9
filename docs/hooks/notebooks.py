"""Run the notebooks of docs/tour, for the site and for the tests."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

INLINE = "module://matplotlib_inline.backend_inline"  # pictures as outputs
CELL = 600  # seconds that one cell may take
ALONE = "%reset -f\nimport os, tempfile\nos.chdir({folder!r})\ntempfile.tempdir = {temporary!r}\ndel os, tempfile"


@contextmanager
def kernel(folder: Path, temporary: Path) -> Iterator[Callable[[NotebookNode], None]]:
    """Start a kernel in `folder`; yields a function that runs a notebook in it, whose outputs are in the notebook then.

    All notebooks share the kernel, so that PyTorch is imported once; each begins in the folder and without names. Their temporary files
    are made in `temporary`. The function raises `nbclient.exceptions.CellExecutionError` where a cell fails.
    """
    client = NotebookClient(
        new_notebook(),
        timeout=CELL,
        startup_timeout=CELL,
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors
    )

    def run(notebook: NotebookNode) -> None:
        alone = new_code_cell(ALONE.format(folder=str(folder), temporary=str(temporary)))
        client.nb = new_notebook(cells=[alone, *notebook.cells])
        for index, cell in enumerate(client.nb.cells):
            if cell.cell_type == "code":
                client.execute_cell(cell, index)
        notebook.cells = client.nb.cells[1:]

    with client.setup_kernel(env={**os.environ, "MPLBACKEND": INLINE}):  # a program that ran before may have set another
        yield run
