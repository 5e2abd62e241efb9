"""python setup.py install [--user]: the published way to install the module `emd`, here on top of m2ae_ops."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "install_beside.py"))["install_beside"]("emd", "0.1.0")
