"""What MkDocs is told besides mkdocs.yml: pages outside docs/, links to files of the repository, the tour, the code of the API pages."""

import importlib.util
import os
import posixpath
import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from notebooks import kernel

ROOT = Path(__file__).resolve().parents[2]
CODE = ROOT / "build" / "docs"  # the package as it is installed, which the API pages are made of
# Pages that are not below docs/, and the index there, whose place the README takes: path in the repository -> page.
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data/README.md": "data-layouts.md",
    "api/weights/README.md": "mini-weights.md",
    "extensions/m2ae_ops/README.md": "ops.md",
    "extensions/m2ae_ops/csrc/README.md": "ops-sources.md",
}
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_sources: dict[str, str] = {}  # page -> path in the repository


def anchor(heading: str, separator: str = "-") -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


@event_priority(100)
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write the package under its installed names, and let anchors be those of GitHub."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = anchor
    spec = importlib.util.spec_from_file_location("m2ae_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    shutil.rmtree(CODE, ignore_errors=True)
    for path, name in setup.files():
        if path.suffix == ".py" and name.startswith(
            ("m2ae/__init__", "m2ae/transforms", "m2ae/models", "m2ae/datasets")
        ):
            (CODE / name).parent.mkdir(parents=True, exist_ok=True)
            (CODE / name).write_text(setup.rewrite(path.read_text(encoding="utf-8"), name), encoding="utf-8")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/ and the tour."""
    files.remove(files.get_file_from_path("README.md"))
    _sources.clear()
    _sources.update({file.src_uri: f"docs/{file.src_uri}" for file in files if file.src_uri.endswith(".md")})
    for source, page in PAGES.items():
        _sources[page] = source
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in _tour(config):
        files.append(file)
    return files


def _tour(config: MkDocsConfig) -> list[File]:
    """Run the notebooks; returns them as pages, with their pictures."""
    made, folder = [], ROOT / "docs" / "tour"
    with tempfile.TemporaryDirectory() as temporary, kernel(folder, Path(temporary)) as run:
        for path in sorted(folder.glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            run(notebook)
            resources = {"unique_key": path.stem, "output_files_dir": f"{path.stem}-pictures"}
            text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
            text = text.replace("![png](", "![What the cell above draws](")
            text += f"\n---\nThis page is a notebook: [{path.name}]({path.name}), next to [tour.py](tour.py).\n"
            page = f"tour/{path.stem}.md"
            _sources[page] = f"docs/tour/{path.name}"
            made.append(File.generated(config, page, content=text))
            for name, content in resources["outputs"].items():
                made.append(File.generated(config, f"tour/{name}", content=content))
    return made


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links of the site; what is no page of it is copied into files/."""
    return LINK.sub(lambda match: match[1] + _target(match[2], page.file.src_uri, config, files) + match[3], markdown)


def _target(link: str, page: str, config: MkDocsConfig, files: Files) -> str:
    path, mark, place = link.partition("#")
    if not path or ":" in path or files.get_file_from_path(posixpath.join(posixpath.dirname(page), path)) is not None:
        return link
    there = posixpath.normpath(posixpath.join(posixpath.dirname(_sources[page]), path))
    there = f"{there}/README.md" if (ROOT / there / "README.md").is_file() else there
    pages = {source: name for name, source in _sources.items()}
    inside = pages.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else f"files/{there}")
    if files.get_file_from_path(inside) is None and (ROOT / there).is_file():
        files.append(File.generated(config, inside, abs_src_path=str(ROOT / there)))
    return os.path.relpath(inside, posixpath.dirname(page) or ".").replace(os.sep, "/") + mark + place
