"""The documentation site: `uv run --group docs sphinx-build -W docs docs/_build/html`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import api
import docstrings

import signax

here = Path(__file__).parent
(here / "api.md").write_text(api.page(Path(signax.__file__)))

project = "signax"
author = "The signax authors"
project_copyright = f"2026, {author}"
release = signax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.katex",
]
exclude_patterns = ["_build"]
nitpicky = False

# Docstrings are Google sections with their own indentation of two.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # pages that begin inside the README begin below its headings

# The notebooks are committed with their outputs, and run by the tests.
nb_execution_mode = "off"

html_theme = "sphinx_book_theme"
html_title = "signax"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}


def setup(app):
    """Reads the docstrings as they are written, before napoleon does."""

    def read(app, what, name, obj, options, lines):
        del app, what, name, obj, options
        lines[:] = docstrings.to_rst("\n".join(lines)).split("\n")

    def skip(app, what, name, obj, is_skipped, options):
        del app, what, name, options
        is_field = (getattr(obj, "__doc__", None) or "").startswith("Alias for field number")
        return True if is_field else is_skipped

    app.connect("autodoc-process-docstring", read, priority=100)
    app.connect("autodoc-skip-member", skip)
