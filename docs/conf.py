"""Sphinx configuration: `make docs`."""

import io
import os
import shutil
from contextlib import redirect_stdout, suppress
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the gallery's matrices are small
os.environ["COLUMNS"] = "90"  # width of the command line's help

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import quadric
from quadric import backends, cli

here = Path(__file__).parent
generated = here / "_generated"
generated.mkdir(exist_ok=True)

project = "quadric"
author = "the quadric authors"
project_copyright = "2026, the quadric authors"
version = release = quadric.__version__

extensions = [
    "myst_parser",  # the benchmarks' tables are Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_generated", "_templates", "gallery", "**/sg_execution_times.rst"]
default_role = "code"
add_module_names = False
autodoc_typehints = "none"  # the docstrings give shapes and dtypes, which say more
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["math.css"]
html_title = f"quadric {release}"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "gallery_out",
    "filename_pattern": r"plot_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "plot_gallery": True,
    "abort_on_example_error": True,
}


def write_backend_table() -> None:
    """Turn the table that dispatch reads into a page, so that the two cannot differ."""
    head = ["Kernel", *backends.ORDER, "Types", "Layout", "What it does; what bounds it"]
    rows = [
        [
            f"``{name}``",
            *("yes" if backend in kernel.backends else "" for backend in backends.ORDER),
            ", ".join(kernel.dtypes),
            kernel.layout,
            kernel.work.replace("|", r"\|"),
        ]
        for name, kernel in backends.table()
    ]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        lines += [f"   {' ' if i else '*'} - {cell}" for i, cell in enumerate(row)]
    (generated / "backends.rst").write_text("\n".join(lines) + "\n")


def copy_measured() -> None:
    """Make the benchmarks' stored tables pages of their own."""
    shutil.rmtree(here / "measured", ignore_errors=True)
    shutil.copytree(here.parent / "bench" / "results", here / "measured")


def write_help(name: str, *words: str) -> None:
    """Save what the command line says of itself."""
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        cli.main([*words, "--help"])
    (generated / name).write_text(text.getvalue())


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def display_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode


def unlink_prose(_app: Sphinx, page: nodes.document) -> None:
    """Types are prose, "array of int32, shape (n,)": only a capitalized word is a name in it."""
    for reference in list(page.findall(addnodes.pending_xref)):
        if reference["reftype"] == "class" and reference["reftarget"].islower():
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", unlink_prose)
    # MathML is shown by the browser itself, so the pages load nothing from elsewhere.
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))


html_math_renderer = "mathml"

write_backend_table()
copy_measured()
write_help("quadric.txt")
write_help("quadric-compress.txt", "compress")
