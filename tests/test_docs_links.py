"""Links between the pages lead somewhere, every page is listed, and pictures are legible by day and by night."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from actors.reference import anchor
from tests.documents import PAGES, ROOT, prose

LINKS = [
    pytest.param(page, target, id=f"{page}-{target}")
    for page, text in PAGES.items()
    for target in dict.fromkeys(re.findall(r"\]\(([^)]+)\)", prose(text)))
    if not target.startswith(("http://", "https://"))
]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))


@pytest.mark.parametrize(("page", "target"), LINKS)
def test_a_link_leads_to_a_file_and_to_a_heading_in_it(page: str, target: str) -> None:
    path, _, heading = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists()
    if heading:
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
        assert heading in {anchor(found) for found in headings}


def test_every_page_is_listed_in_the_index_and_no_other() -> None:
    listed = set(re.findall(r"^\| \[\w+\]\((\w+\.md)\)", PAGES["docs/README.md"], re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_shown_says_what_it_is_and_has_colours_for_the_dark(path: object) -> None:
    assert path in PICTURES
    name = getattr(path, "name", "")
    assert any(f"](pictures/{name})" in text for text in PAGES.values())
    picture = ElementTree.parse(str(path)).getroot()
    assert picture.findtext("{*}title")
    style = picture.findtext("{*}style") or ""
    by_day, by_night = style.split("@media (prefers-color-scheme: dark)")
    classes = set(re.findall(r"\.(\w+) \{", by_day))
    assert classes == set(re.findall(r"\.(\w+) \{", by_night))
    used = {name for element in picture.iter() for name in [element.get("class")] if name}
    assert used <= classes
