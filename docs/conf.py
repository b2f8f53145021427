"""How Sphinx makes the site out of these pages: `make docs`, then open build/docs/index.html."""

from __future__ import annotations

import re
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sphinx.addnodes import pending_xref
from sphinx.util.nodes import find_pending_xref_condition

import streamwise

project = "streamwise"
author = "the streamwise authors"
version = release = streamwise.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_static", "images"]
highlight_language = "none"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"(?!streamwise\.).*"),  # `code` in docstrings may be any name
    ("py:obj", r".*\.Sample\w*"),  # type variables
    ("py:class", ".*"),  # annotations name internal classes, too
]

myst_heading_anchors = 4

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries = False

html_theme = "furo"
html_title = "streamwise"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f6fb2", "color-brand-content": "#1f6fb2"},
    "dark_css_variables": {"color-brand-primary": "#6cb2ee", "color-brand-content": "#6cb2ee"},
}

# Pages outside of this folder, by the page of the site that includes them.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/README.md": "examples.md",
}


def link_outside(_app: Any, _docname: str, source: list[str]) -> None:
    """Lead links from a page to one outside of this folder to where the site has it."""
    for path, page in OUTSIDE.items():
        source[0] = source[0].replace(f"](../{path}", f"]({page}")


def link_included(_app: Any, path: Path, _docname: str, source: list[str]) -> None:
    """Lead the links of a page outside of this folder to where the site has what they point at."""
    folder = path.parent  # from here: "..", or "../examples"
    if path.relative_to("..").as_posix() in OUTSIDE:
        text = re.sub(r"\]\((?!https?:|#)", f"]({folder.as_posix()}/", source[0])
        linked = [text.replace("](../docs/", "](")]
        link_outside(_app, _docname, linked)
        source[0] = linked[0]


def no_signature_of_fields(
    _app: Any, what: str, name: str, _of: Any, _options: Any, args: str, _returns: str
) -> Any:
    """Leave out what the fields below say better, and what a protocol has none of."""
    if what == "class" and (name.endswith(("Config", "Settings")) or args == "(*args, **kwargs)"):
        return "", None
    return None


def docstring_to_rst(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Turn a docstring, prose with `code`, lists, examples and indented formulas, into reStructuredText."""
    if re.fullmatch(r"Alias for field number \d+", lines[0] if lines else ""):  # a tuple's
        lines.clear()
    marked: list[tuple[str, str]] = []
    inside = "prose"
    for line in lines:
        after_blank = not (marked and marked[-1][1].strip())
        if line.startswith(">>>"):
            inside = "example"
        elif inside == "prose" and line.startswith("    ") and after_blank:
            inside = "formula"
        elif (inside == "formula" and line[:4].strip()) or (inside == "example" and not line):
            inside = "prose"
        # In prose a deep indent goes on with the line before.
        marked.append((inside, line.lstrip() if inside == "prose" and line.startswith("    ") else line))
    lines.clear()
    for kind, group in groupby(marked, key=itemgetter(0)):
        text = "\n".join(line for _, line in group)
        if kind == "formula":
            text = f".. code-block:: text\n\n{text}\n"
        elif kind == "prose":
            text = prose_to_rst(text)
        lines += text.split("\n")


def prose_to_rst(text: str) -> str:
    """Turn `code` into a link where it names something of ours; every other character means itself."""
    parts = re.split(r"`([^`]+)`", text)
    for at in range(0, len(parts), 2):
        plain = re.sub(r"([\\*|]|_(?=\W|$)|(?<=file):)", r"\\\1", parts[at])
        parts[at] = re.sub(r"arXiv:(\d{4}\.\d{5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", plain)
    for at in range(1, len(parts), 2):
        is_name = re.fullmatch(r"[A-Za-z_][\w.]*", parts[at])
        code = f":py:obj:`{parts[at]}`" if is_name else f"``{parts[at]}``"
        parts[at] = rf"\ {code}\ "  # an escaped space is none: letters may follow at once
    return "".join(parts)


def unlink_foreign_types(_app: Any, doctree: Any) -> None:
    """Leave other projects' types in signatures as text; Sphinx would search all of ours for each."""
    for reference in list(doctree.findall(pending_xref)):
        ours = reference["reftarget"].startswith("streamwise.")
        if reference["refdomain"] == "py" and reference["reftype"] == "class" and not ours:
            short = find_pending_xref_condition(reference, "resolved") or reference
            reference.replace_self(short.children)


def setup(app: Any) -> None:
    """Connect what is above."""
    app.connect("source-read", link_outside)
    app.connect("include-read", link_included)
    app.connect("autodoc-process-signature", no_signature_of_fields)
    app.connect("autodoc-process-docstring", docstring_to_rst)
    app.connect("doctree-read", unlink_foreign_types)
