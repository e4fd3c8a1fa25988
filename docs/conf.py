"""How Sphinx builds the documentation: ``sphinx-build -n -W docs OUTPUT``."""

from __future__ import annotations

import builtins
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

import trioproxy
from trioproxy.server import PoolStatistics, Statistics

HERE = Path(__file__).parent

project = "trioproxy"
author = "The trioproxy authors"
copyright = "The trioproxy authors"
release = version = trioproxy.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "newsfragments"]
html_theme = "alabaster"
html_theme_options = {"description": "An HTTP proxy that you program", "page_width": "1080px"}
html_show_copyright = False
highlight_language = "python"
# A name in single backquotes is whatever the reference knows by that name.
default_role = "any"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# Values that are met but not imported by their users: said under the package that hands them out.
Statistics.__module__ = PoolStatistics.__module__ = "trioproxy.server"

nitpicky = True
# The build needs no network, so that names of other projects are not looked up.
nitpick_ignore_regex = [
    (r"py:exc", r"io\..*"),
    (
        r"py:.*|any",
        r"(trio|attrs|os|pathlib|logging|http|math|collections\.abc|contextlib|typing|argparse|ipaddress)\..*",
    ),
    (r"py:.*|any", "|".join(sorted(name for name in dir(builtins) if name[0] != "_"))),
    (
        r"py:.*|any",
        r"Awaitable|CtxT|Exchanges|TaskFilter|(Message|Downstream|Upstream)Stream(\.\w+)?",
    ),
    # What the options of modules take, which their descriptions tell.
    (r"py:.*|any", r"Callable\[\[\]|Applies|Allows|Check(Key|Password)|Fetched|Key"),
    # Parts of the engine that a signature names and that nobody has to know.
    (r"py:.*|any", r"trioproxy\.(?:\w+\.)*_\w+\..*"),
]


class Unreleased(SphinxDirective):
    """The list of what the fragments in docs/newsfragments tell."""

    def run(self) -> list[nodes.Node]:
        """Parse every fragment as one item."""
        text: list[str] = []
        for path in sorted((HERE / "newsfragments").glob("*.*.rst")):
            self.env.note_dependency(str(path))
            # A fragment ends up in Markdown, where one backquote marks code.
            markdown = path.read_text(encoding="utf-8").strip()
            first, *rest = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", markdown).splitlines()
            text += [f"- {first}", *(f"  {line}" for line in rest)]
        return self.parse_text_to_nodes("\n".join(text or ["Nothing yet."]))


def show_sources(_app: Sphinx) -> None:
    """Let autodoc find the sources of public names, for the order of methods and for comments.

    It looks for them in the module that a name says it is of, which is the public one.
    """
    public = ModuleAnalyzer.for_module("trioproxy")
    public.analyze()
    for name in sorted(sys.modules):
        if name.startswith("trioproxy."):
            private = ModuleAnalyzer.for_module(name)
            private.analyze()
            public.attr_docs.update(private.attr_docs)
            public.tagorder.update(private.tagorder)


def setup(app: Sphinx) -> None:
    """Add the directive, and prepare autodoc."""
    app.add_directive("unreleased", Unreleased)
    app.connect("builder-inited", show_sources)
