"""Build the pages of this folder as a site: ``make docs``."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
LINK = re.compile(r"^- \[.+?\]\(([\w/]+)\.(?:md|rst)\)", re.MULTILINE)
INTERVAL = re.compile(r"(?<=[ |])(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]")
sys.path.insert(0, str(DOCS.parent))

import sb3_grpo  # noqa: E402  # that of this repository

project = "sb3-grpo"
author = "The sb3-grpo developers"
copyright = author
version = release = sb3_grpo.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"sb3-grpo {release}"
html_theme_options = {
    "source_repository": "https://github.com/sb3-grpo/sb3-grpo/",
    "source_branch": "main",
    "source_directory": "docs/",
}
# the names of GitHub's anchors, down to this level of headings
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# objects are listed under the module that defines them, where docstrings look for them; readers import most of them from
# `sb3_grpo`
add_module_names = False

nitpick_ignore_regex = [
    # what other projects define: their inventories are on the internet, which a build does not need
    ("py:.*", r"(collections|gymnasium|io|numpy|pathlib|stable_baselines3|torch|typing)\..*"),
    # named in annotations as strings, without their module
    ("py:class", "Figure|VecEnv"),
    # type variables: nothing is known of them
    ("py:class", r"sb3_grpo\.(losses\.Array|model_files\.SelfModelFiles)"),
]


def table_of_contents(index: str) -> str:
    """
    Return the table of contents that ``index.md`` is: its headings and the pages that each of them links to.

    :param index: text of ``index.md``
    :return: a ``toctree`` for each heading with pages; pages that are not linked come last
    """
    _, *parts = re.split(r"^## (.+)$", index, flags=re.MULTILINE)
    pages = {caption: LINK.findall(text) for caption, text in zip(parts[::2], parts[1::2], strict=True)}
    linked = {"index", *(page for part in pages.values() for page in part)}
    pages["More"] = sorted({page.stem for page in DOCS.glob("*.md")} - linked)
    trees = (f":caption: {caption}\n:hidden:\n\n" + "\n".join(names) for caption, names in pages.items() if names)
    return "".join(f"\n```{{toctree}}\n{tree}\n```\n" for tree in trees)


def adapt_page(app: Sphinx, name: str, content: list[str]) -> None:
    """
    Keep a figure and its interval in one line, and append the table of contents to ``index.md``.

    Neither is in the files: non-breaking spaces cannot be told from others there, and the table would be code on GitHub.

    :param name: name of the page
    :param content: its text, in a list of one entry
    """
    content[0] = INTERVAL.sub("\\1\N{NO-BREAK SPACE}[\\2,\N{NO-BREAK SPACE}\\3]", content[0])
    if name == "index":
        content[0] += table_of_contents(content[0])


def setup(app: Sphinx) -> None:
    """
    Connect what this file adds to Sphinx.

    :param app: Sphinx
    """
    app.connect("source-read", adapt_page)
