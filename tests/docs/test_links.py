"""Links lead somewhere: on GitHub, on the package's page and on the site; `make docs` checks the site's own besides."""

import re
from pathlib import Path

import pytest
from pages import FILE_URLS, NAMES, REPOSITORY, anchors, links_of

DOCS = [name for name in NAMES if name.startswith("docs/")]


def problem(link: str, page: Path) -> str | None:
    """
    Say what is wrong with a link.

    :param link: as it stands in the page
    :param page: file of the page, in the folder ``docs``
    :return: ``None``: nothing
    """
    target, _, anchor = link.partition("#")
    base = next((base for base in FILE_URLS if target.startswith(base)), None)
    if base is None and re.match(r"https?://", target):
        return None
    file = REPOSITORY / target.removeprefix(base) if base else (page.parent / target if target else page)
    if not file.exists():
        return "no such file"
    if anchor and anchor not in anchors(file.read_text()):
        return "no such heading"
    # the site has pages and pictures, nothing else of the repository
    if base is None and file.suffix not in (".md", ".rst", ".png"):
        return f"must begin with {FILE_URLS[0]}"
    return None


@pytest.mark.parametrize("name", DOCS)
def test_links_lead_somewhere(name: str) -> None:
    page = REPOSITORY / name
    problems = {link: problem(link, page) for link in links_of(page.read_text())}
    assert {link: what for link, what in problems.items() if what} == {}


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("results.md", None),
        ("results.md#several-tasks", None),
        ("#protocol", None),
        ("api/index.rst", None),
        ("../benchmarks/results/demo.png", None),
        ("https://arxiv.org/abs/1707.06347", None),
        (f"{FILE_URLS[0]}examples/chat.py", None),
        ("result.md", "no such file"),
        ("results.md#several-task", "no such heading"),
        ("#several-task", "no such heading"),
        ("../benchmarks/results/demonstration.png", "no such file"),
        (f"{FILE_URLS[0]}examples/chats.py", "no such file"),
        (f"{FILE_URLS[0]}docs/results.md#several-task", "no such heading"),
        ("../examples/chat.py", f"must begin with {FILE_URLS[0]}"),
    ],
)
def test_problems_are_found(link: str, expected: str | None) -> None:
    assert problem(link, REPOSITORY / "docs/results.md") == expected


def test_links_are_found() -> None:
    text = "[one](a.md#b) ![two](c.png) `[no](d)`\n```text\n[no](e)\n```\n[three\nlines](f.md)\n"
    assert links_of(text) == ["a.md#b", "c.png", "f.md"]


def test_anchors_are_those_of_github() -> None:
    page = "# One\ntext\n## LunarLander's `two` parts\n```text\n# code\n```\n### Can I use?\n"
    assert anchors(page) == {"one", "lunarlanders-two-parts", "can-i-use"}
