"""What the book adds to Sphinx: links to the source documents, docstrings read as they are meant.

The documents are called D0 to D4. Where a page names one for the first time, the name leads to its description.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DOCUMENTS = "documents"  # the page that describes them
WITHOUT_LINKS = (DOCUMENTS, "reference/", "genindex")
NAME = re.compile(r"\bD[0-4]\b")
# A name in a heading, in code, in a link or in a formula stays as it is.
APART = (nodes.title, nodes.literal, nodes.literal_block, nodes.reference, nodes.math, nodes.math_block, nodes.raw)
APART += (nodes.comment, nodes.rubric, addnodes.pending_xref, addnodes.download_reference)


def link_documents(app: Sphinx, doctree: nodes.document) -> None:
    """Make a link of the first mention of each document on a page."""
    page = app.env.docname
    if (DOCUMENTS not in app.env.all_docs and DOCUMENTS not in app.env.found_docs) or page.startswith(WITHOUT_LINKS):
        return
    linked: set[str] = set()
    for text in list(doctree.findall(nodes.Text)):
        above = text.parent
        while above is not None and not isinstance(above, APART):
            above = above.parent
        if above is None:
            made = list(_linked(str(text), linked, page))
            if len(made) > 1:
                text.parent.replace(text, made)


def _linked(text: str, linked: set[str], page: str) -> Any:
    """The parts of a text: itself, and links for the documents that it is the first to name."""
    at = 0
    for match in NAME.finditer(text):
        if match.group() not in linked:
            linked.add(match.group())
            yield nodes.Text(text[at : match.start()])
            target = {"refdomain": "std", "reftype": "ref", "reftarget": match.group().lower(), "refexplicit": True}
            yield addnodes.pending_xref("", nodes.inline("", match.group()), refdoc=page, refwarn=True, **target)
            at = match.end()
    yield nodes.Text(text[at:])


def keep_colons(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon for a type, in *Returns* or of a value."""
    if what in ("data", "attribute", "property") and lines and ":" in lines[0]:
        lines[0] = f": {lines[0]}"
    for at, line in enumerate(lines[:-1]):
        if line.strip() in ("Returns:", "Yields:") and lines[at + 1].strip():
            words = lines[at + 1].lstrip()
            lines[at + 1] = f"{' ' * (len(lines[at + 1]) - len(words))}: {words}"


def leave_out_aliases(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of a named tuple where all that is known of them is their number; its class tells them."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def read_side_by_side(app: Sphinx) -> None:
    """Declare what two extensions of Jupyter Book do not: they do nothing while pages are read for a site."""
    for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
        app.extensions[name].parallel_read_safe = True


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.connect("doctree-read", link_documents)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", leave_out_aliases)
    app.connect("builder-inited", read_side_by_side)
    return {"parallel_read_safe": True}
