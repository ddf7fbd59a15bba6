"""The package's page: README stands there alone, without the repository around it."""

import re

import pytest
from pages import FILE_URLS, REPOSITORY, URL, anchors, links_of

LINKS = sorted(set(links_of((REPOSITORY / "README.md").read_text())))


@pytest.mark.parametrize("link", LINKS)
def test_links_work_elsewhere(link):
    assert link.startswith("https://")
    base = next((base for base in FILE_URLS if link.startswith(base)), None)
    if base is None:
        # another project, or the front page
        assert not link.startswith(f"{URL}/")
        return
    name, _, anchor = link.removeprefix(base).partition("#")
    assert (REPOSITORY / name).exists()
    if anchor:
        assert anchor in anchors((REPOSITORY / name).read_text())


def test_there_are_links_to_files_and_a_picture():
    assert sum(link.startswith(FILE_URLS[0]) for link in LINKS) > 5
    assert any(link.startswith(FILE_URLS[-1]) and link.endswith(".png") for link in LINKS)


def test_project_urls():
    urls = re.search(r"\[project.urls\]\n(.*?)\n\n", (REPOSITORY / "pyproject.toml").read_text(), re.DOTALL)
    assert urls is not None
    for line in urls[1].splitlines():
        url = line.partition(" = ")[2].strip('"')
        assert url.startswith(URL), line
        path = re.sub(r"^/(blob|tree)/main/", "", url.removeprefix(URL))
        assert path in ("", "/issues") or (REPOSITORY / path).exists(), line
