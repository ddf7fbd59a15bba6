"""The package's page: README stands there alone, without the repository around it."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
URL = "https://github.com/sb3-grpo/sb3-grpo"
FILES = (f"{URL}/blob/main/", "https://raw.githubusercontent.com/sb3-grpo/sb3-grpo/main/")
LINKS = sorted(set(re.findall(r"\]\(([^)]+)\)", README)))


def anchors(page: str) -> set[str]:
    """What links to parts of a page of Markdown are called: a heading's words, joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_anchors():
    assert anchors("# One\ntext\n## LunarLander's `two` parts\n") == {"one", "lunarlanders-two-parts"}


@pytest.mark.parametrize("link", LINKS)
def test_links_work_elsewhere(link):
    assert link.startswith("https://")
    base = next((base for base in FILES if link.startswith(base)), None)
    if base is None:
        # another project, or the front page
        assert not link.startswith(f"{URL}/")
        return
    name, _, anchor = link.removeprefix(base).partition("#")
    assert (REPOSITORY / name).is_file()
    if anchor:
        assert anchor in anchors((REPOSITORY / name).read_text())


def test_there_are_links_to_files_and_a_picture():
    assert sum(link.startswith(FILES[0]) for link in LINKS) > 5
    assert any(link.startswith(FILES[1]) and link.endswith(".png") for link in LINKS)


def test_project_urls():
    urls = re.search(r"\[project.urls\]\n(.*?)\n\n", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL)
    assert urls is not None
    for line in urls[1].splitlines():
        url = line.partition(" = ")[2].strip('"')
        assert url.startswith(URL), line
        path = re.sub(r"^/(blob|tree)/main/", "", url.removeprefix(URL))
        assert path in ("", "/issues") or (REPOSITORY / path).exists(), line


def test_extras_that_are_named_exist():
    extras = re.search(r"\[project.optional-dependencies\]\n(.*?)\n\n", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL)
    assert extras is not None
    names = set(re.findall(r"^(\w+) = \[", extras[1], re.MULTILINE))
    files = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("sb3_grpo/**/*.py")]
    named = {name for path in files for name in re.findall(r"sb3-grpo\[(\w+)\]", path.read_text())}
    assert {"extra", "zoo"} <= named <= names
