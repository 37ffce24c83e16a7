"""Sphinx's settings for the course's site. `make site` gathers the pages (rftkit/site.py) and builds them with this file.

Nothing is loaded from another host: formulas become MathML when the site is built (math-core) and are set in a font that lies
beside the pages, the theme brings its own files, and the search index is a file, too.
"""

import html
from typing import Any

from docutils import nodes
from math_core import LatexError
from sphinx.application import Sphinx
from sphinx.util import logging

from rftkit import notebooks

project = "rftkit"
author = "The rftkit developers"
copyright = f"{author}. Text and figures CC BY 4.0, code Apache-2.0"
language = "en"
highlight_language = "none"  # of blocks that name none; cells of notebooks do
root_doc = "index"
extensions = ["myst_nb"]
exclude_patterns = ["_static", "extra"]

myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True  # a formula between $$ may stand within a paragraph
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks were run by `make run`
nb_render_markdown_format = "myst"  # so that tables which a cell displays are tables
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # no widgets: their scripts would come from another host

html_theme = "sphinx_book_theme"
html_title = "rftkit"
html_static_path = ["_static"]
html_extra_path = ["extra"]
html_css_files = ["style.css"]
html_js_files = ["page.js"]
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}  # else the theme warns of an unknown mode
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options: dict[str, Any] = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    **{f"navbar_{place}": [] for place in ("start", "center", "end", "persistent")},  # the search stands in the sidebar
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def mathml(node: nodes.Element, block: bool) -> str:
    """The formula as MathML; one that is not understood is a warning, which ends the build, and stands as it was typed."""
    text = node.astext()
    try:
        return notebooks.mathml(text, block)
    except LatexError as error:
        logging.getLogger(__name__).warning("formula %r: %s", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"


def visit_math(self: Any, node: nodes.Element) -> None:
    """A long formula in a line gets a box, which scrolls where the line is too short: browsers do not break formulas."""
    text = mathml(node, block=False)
    self.body.append(f'<span class="long-formula">{text}</span>' if len(node.astext()) > 40 else text)
    raise nodes.SkipNode


def visit_math_block(self: Any, node: nodes.Element) -> None:
    self.body.append(f'<div class="formula">{mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def without_empty_heads(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Take away heads of tables that are empty throughout: Markdown wants one, a screen reader would read it."""
    for head in list(doctree.findall(nodes.thead)):
        if not head.astext().strip():
            head.parent.remove(head)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("doctree-resolved", without_empty_heads)
