"""The documentation site, built by Sphinx: sphinx-build -W --keep-going -n -c docs . build/site.

Its pages are Markdown files that read as well on GitHub. Sources are the repository's, not only docs/, so that links to
README.md or benchmarks/RESULTS.md lead to a page here too, and are checked to the heading. Nothing is loaded from a
network, and the search works on files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

project = html_title = "angle-hydra"
language = "en"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"]
exclude_patterns = ["build", "runs", "multirun"]

myst_heading_anchors = 4  # of GitHub's names
myst_enable_extensions = ["dollarmath"]

default_role = "code"  # what `x` means in docstrings
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 80
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# What is of other projects, or inside of this one, has no page.
nitpick_ignore_regex = [("py:.*", r"(?!angle\.).*|angle\.(config\.build|export|kernels|modeling)\..*")]

html_theme = "furo"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # would fetch the pages found, which browsers forbid where they are files
html_math_renderer = "mathml"


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the tree of pages from the lists of the first page: below each of its headings, the pages that it links."""
    if docname != app.config.root_doc:
        return
    for caption, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", source[0], re.MULTILINE):
        pages = "\n".join(
            f"{title} <{page}>" for title, page in re.findall(r"^- \[(.*?)\]\((\S+)\.md\)", body, re.MULTILINE)
        )
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def unlink_folders(app: Sphinx, doctree: nodes.document) -> None:
    """Make text of links to folders of the repository, which are pages on GitHub alone."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(doctree.findall(pending_xref)):
        if link.get("reftype") == "myst" and (here / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def visit_math(translator: nodes.NodeVisitor, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers show by themselves; Sphinx's own way fetches a script."""
    is_block = isinstance(node, nodes.math_block)
    formula = tex2mathml(node.astext(), as_block=is_block)
    translator.body.append(f'<div class="math">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def redirect_to_the_first_page(app: Sphinx, _: Exception | None) -> None:
    """Let the site's folder open with its first page."""
    target = f"{app.config.root_doc}.html"
    page = f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={target}">'
    Path(app.outdir, "index.html").write_text(f'{page}<title>{project}</title><a href="{target}">{project}</a>\n')


def setup(app: Sphinx) -> None:
    """Connect the functions above to what Sphinx does."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", unlink_folders)
    app.connect("build-finished", redirect_to_the_first_page)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
