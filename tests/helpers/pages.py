"""A page of HTML taken apart by the standard library's parser."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}  # which have no end
POINTS_ELSEWHERE = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")


class Page(HTMLParser):
    """What a page holds.

    faults: a tag that is not closed, or closed twice. tags: all of them. ids, references: of
    attributes. tables: each a list of rows of cells, its headings first. text: of all that is read,
    without the style sheet. commands: the text of each `pre`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tables: list[list[list[str]]] = []
        self.commands: list[str] = []
        self._words: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        self.faults += [f"<{tag}> is not closed" for tag in self._open]

    @property
    def text(self) -> str:
        return " ".join("".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "pre":
            self.commands.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes what is not open")
        self._words.append(" " if tag in ("td", "th", "p", "li", "h1", "h2", "h3") else "")

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self._words.append(data)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data
        if "pre" in self._open:
            self.commands[-1] += data

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            self.attributes.append((name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name in POINTS_ELSEWHERE:
                self.references.append(value or "")


def assert_stands_alone(page: Page) -> None:
    """Balanced, ids once, nothing fetched, no script, and every reference to something there."""
    assert page.faults == []
    assert len(set(page.ids)) == len(page.ids)
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for reference in page.references:
        assert reference.startswith(("#", "data:image/")), reference
        assert not reference.startswith("#") or reference[1:] in page.ids
    for name, value in page.attributes:
        for part in value.split("url(")[1:]:
            assert part.startswith("#"), (name, value)
            assert part[1:].partition(")")[0] in page.ids
    assert "@import" not in page.source
    assert "http" not in page.source.partition("<body>")[0]
