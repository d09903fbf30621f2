"""What the pages point to is there: pages, headings, files, tests."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks, name_of, pages, prose

COLUMNS_MAX = 110

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_FOLDERS = ("src", "tests", "docs", "tools", "proto", "examples", "deploy", "changelog.d", "requirements")
_FILE = re.compile(rf"(?:{'|'.join(map(re.escape, _FOLDERS))})/[\w./*-]*")
_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    titles = [line.lstrip("#").strip() for _, line in prose(page) if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for number, line in prose(page):
        for target in _LINK.findall(line):
            if re.match(r"https?://", target):
                continue
            path, _, anchor = target.partition("#")
            where = f"{name_of(page)}:{number}: {target}"
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{where}: no such file"
            assert file.is_relative_to(ROOT), where
            assert not anchor or anchor in anchors(file), f"{where}: no such heading"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for number, line in prose(page):
        for code in _CODE.findall(line):
            where = f"{name_of(page)}:{number}: {code}"
            for file, test in _TEST.findall(code):
                assert f"def {test}(" in (ROOT / file).read_text(), f"{where}: no such test"
            if _FILE.fullmatch(code):
                assert (ROOT / code).exists() or list(ROOT.glob(code)), f"{where}: no such file"


def test_every_page_can_be_found() -> None:
    """From the README, link by link."""
    seen: set[Path] = set()
    left = [ROOT / "README.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for _, line in prose(page):
            targets = (target.partition("#")[0] for target in _LINK.findall(line) if "://" not in target)
            left += [(page.parent / target).resolve() for target in targets if target]
    assert [name_of(page) for page in pages() if page not in seen] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_lines_are_not_too_long(page: Path) -> None:
    for number, line in prose(page):
        if not line.startswith("|") and "](" not in line:
            assert len(line) <= COLUMNS_MAX, f"{name_of(page)}:{number}: {len(line)} characters"


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_job_files_on_pages_are_job_files(page: Path) -> None:
    from rota.wire.yaml import read_jobs

    for block in blocks(page):
        if block.language == "yaml" and not block.name.startswith("bad"):
            read_jobs(block.text.encode(), f"{name_of(page)}:{block.line}")
