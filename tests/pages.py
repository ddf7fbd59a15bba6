"""The pages of the documentation, and what tests look for in them."""

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(REPOSITORY)) for page in PAGES]
URL = "https://github.com/sb3-grpo/sb3-grpo"
# beginnings of links to files of the repository
FILE_URLS = (f"{URL}/blob/main/", f"{URL}/tree/main/", "https://raw.githubusercontent.com/sb3-grpo/sb3-grpo/main/")
# a block of code, with the comment before it that says why it is not run
BLOCK = re.compile(r"(?:^<!-- not run: (?P<reason>.+) -->\n)?^```(?P<language>.*)\n(?P<code>(?:.*\n)*?)^```$", re.MULTILINE)
# what `pip install "sb3-grpo[...]"` can be given
_, _, after = (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")
EXTRAS = re.findall(r"^(\w+) = \[", after.partition("\n\n")[0], re.MULTILINE)


class Block(NamedTuple):
    """A block of code in a page."""

    language: str
    code: str
    line: int  # of the page, from 1, on which the code begins
    reason: str | None  # why it is not run


def blocks_of(text: str) -> list[Block]:
    """
    Return the blocks of code of a page, in their order.

    :param text: the page
    """
    return [
        Block(match["language"], match["code"], text.count("\n", 0, match.start("code")) + 1, match["reason"])
        for match in BLOCK.finditer(text)
    ]


def anchors(text: str) -> set[str]:
    """
    Return what links to the parts of a page are called: the words of a heading, joined by hyphens.

    :param text: the page
    """
    prose = BLOCK.sub("", text)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(text: str) -> list[str]:
    """
    Return what a page links to and shows, in its order.

    :param text: the page
    """
    prose = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", prose)
