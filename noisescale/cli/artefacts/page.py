"""A page of HTML that stands alone: what a screen would show, whole, and pictures within it."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from noisescale._version import __version__
from noisescale.cli.artefacts.style import STYLE
from noisescale.cli.printing.tables import NumberTable, Screen, plain_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from noisescale.statistics.critical_batch.advice import Advice

NOTE = "Note: "  # what a sentence that a reader should know begins with
GENERATOR = '<meta name="generator" content="noisescale">'  # by which a page of ours is known
PIXELS_AN_INCH = 110  # of a figure on the screen: its letters of 7 points are 11 pixels high
LEAST_SHARE = 0.55  # of that, to which a narrow screen shrinks it before it scrolls


class Section(Screen):
    """A part of a page, which keeps what is printed on it as HTML.

    Args:
        name: of the section, a valid id in HTML.
        path: what it shows, as it was given.

    Attributes:
        title: its heading.
        meaning: what it shows, in a sentence.
        answer: what there is to see first, for the page's table of contents.
    """

    def __init__(self, name: str, *, path: str) -> None:
        super().__init__(file=io.StringIO(), highlight=False, markup=False)
        self.name, self.path = name, path
        self.title, self.meaning, self.answer = path, "", ""
        self._parts: list[str] = []
        self._num_figures = 0

    def print(self, *objects: Any, **settings: Any) -> None:
        """Adds sentences and tables; what a screen would fold or leave out is whole here.

        Args:
            *objects: a str is a sentence.
            **settings: of a screen; they are ignored.
        """
        for each in objects:
            if isinstance(each, NumberTable):
                self._parts.append(_table(each))
            else:
                text = each.plain if isinstance(each, Text) else str(each)
                self._parts.append(_sentence(" ".join(text.split())))

    def heading(self, text: str) -> None:
        """Adds a heading.

        Args:
            text: of it.
        """
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def advice(self, advice: Advice | None) -> None:
        """Adds the batch sizes that follow, with what is said of them.

        Args:
            advice: None: nothing is added.
        """
        if advice is None:
            return
        self.answer = self.answer or advice.heading.rstrip(":")
        inside = [f"<p><strong>{html.escape(advice.heading)}</strong></p>"]
        if advice.sizes:
            columns = advice.table()
            table = plain_table(*columns, left=("aim", "worth"))
            for row in zip(*columns.values(), strict=True):
                table.add_row(*row)
            inside.append(_table(table))
        inside += [_sentence(text) for text in advice.sentences]
        if advice.firmer is not None:
            inside.append(f"<p>Firmer: {_code(advice.firmer)}</p>")
        self._parts.append(f'<div class="answer">{"".join(inside)}</div>')

    def say_first(self, text: str) -> None:
        """Adds the answer as a sentence.

        Args:
            text: of it.
        """
        self.answer = text
        self._parts.append(f'<div class="answer"><p><strong>{html.escape(text)}</strong></p></div>')

    def warn(self, text: str) -> None:
        """Adds what is wrong, or missing.

        Args:
            text: a sentence.
        """
        self._parts.append(f'<p class="warning">{html.escape(text)}</p>')

    def figure(self, figure: Figure, title: str) -> None:
        """Adds a picture.

        Args:
            figure: to be drawn as SVG.
            title: for those who cannot see it.
        """
        self._num_figures += 1
        prefix = f"{self.name}-{self._num_figures}-"
        width = figure.get_figwidth() * PIXELS_AN_INCH
        svg = inline_svg(figure, prefix, title)
        least = LEAST_SHARE * width
        self._parts.append(
            f'<figure style="max-width: {width:.0f}px; --least: {least:.0f}px">{svg}</figure>'
        )

    def details(self, title: str, table: NumberTable) -> None:
        """Adds a table that is shown when it is asked for, and in print.

        Args:
            title: what it is.
            table: it.
        """
        self._parts.append(
            f"<details><summary>{html.escape(title)}</summary>{_table(table)}</details>"
        )

    def listing(self, title: str, values: Mapping[str, Any]) -> None:
        """Adds names and values, such as settings.

        Args:
            title: what they are.
            values: by name.
        """
        items = "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>"
            for name, value in values.items()
        )
        self._parts.append(f"<h3>{html.escape(title)}</h3><dl>{items}</dl>")

    def commands(self, title: str, commands: Iterable[str]) -> None:
        """Adds lines for a shell.

        Args:
            title: what they do.
            commands: a line each.
        """
        lines = "".join(map(_command, commands))
        self._parts.append(f"<h3>{html.escape(title)}</h3>{lines}")

    def html(self, *, alone: bool) -> str:
        """The section.

        Args:
            alone: whether the page has no other, so that its title is that of the page.
        """
        heading = "" if alone else f"<h2>{html.escape(self.title)}</h2>"
        return (
            f'<section id="{self.name}">{heading}<p class="path">{html.escape(self.path)}</p>'
            f"<p>{html.escape(self.meaning)}</p>"
            f"{''.join(self._parts)}</section>"
        )


def page(title: str, sections: list[Section], *, command: str) -> str:
    """A page that needs no other file.

    Args:
        title: of the page.
        sections: one or more.
        command: that makes it.
    """
    contents = ""
    if len(sections) > 1:
        items = "".join(
            f'<li><a href="#{section.name}">{html.escape(section.title)}</a>'
            f"{html.escape(f': {section.answer}' if section.answer else '')}</li>"
            for section in sections
        )
        contents = f"<nav><ul>{items}</ul></nav>"
    body = "\n".join(section.html(alone=len(sections) == 1) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{GENERATOR}
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1>{contents}</header>
<main>
{body}
</main>
<footer><p>Made by noisescale {__version__} with</p>{_command(command)}</footer>
</body>
</html>
"""


def inline_svg(figure: Figure, prefix: str, title: str) -> str:
    """A figure as an element of a page.

    Args:
        figure: to be drawn; its letters become paths, so that it needs no font.
        prefix: of every id in it, which no other figure of the page has.
        title: for those who cannot see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": prefix, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    _, _, rest = buffer.getvalue().partition("<svg ")
    for unwanted in (r"<!--.*?-->", r"<metadata>.*?</metadata>", r"<style.*?</style>"):
        rest = re.sub(unwanted, "", rest, flags=re.DOTALL)
    # matplotlib's ids differ from one drawing to the next
    numbers = {name: str(number) for number, name in enumerate(re.findall(r'\bid="([^"]+)"', rest))}
    rest = re.sub(
        r'(\bid="|url\(#|\bxlink:href="#)([^")]+)',
        lambda match: f"{match[1].replace('xlink:', '')}{prefix}{numbers[match[2]]}",
        rest,
    )
    rest = rest.replace("xlink:href=", "href=")  # of data within it
    rest = re.sub(r'\bxmlns(:\w+)?="[^"]*"', "", rest, count=2)
    rest = re.sub(r'\b(width|height)="[\d.]+pt"', "", rest, count=2)
    return f'<svg role="img" aria-label="{html.escape(title)}" {rest.strip()}'


def _sentence(text: str) -> str:
    style = ' class="note"' if text.startswith(NOTE) else ""
    return f"<p{style}>{html.escape(text)}</p>"


def _command(line: str) -> str:
    return f"<pre>{_code(line)}</pre>"


def _code(line: str) -> str:
    """A command, which is broken between its words alone, not after their hyphens."""
    words = " ".join(f"<span>{html.escape(word)}</span>" for word in line.split(" "))
    return f"<code>{words}</code>"


def _table(table: NumberTable) -> str:
    """All of a table, with room below the rows that end a part of it."""
    sides = ["" if column.left else ' class="number"' for column in table.columns]
    caption = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    head = "".join(
        f'<th scope="col"{side}>{html.escape(column.heading)}</th>'
        for side, column in zip(sides, table.columns, strict=True)
    )
    rows = []
    for number, row in enumerate(table.rows):
        cells = "".join(
            f"<td{side}>{html.escape(cell)}</td>" for side, cell in zip(sides, row, strict=True)
        )
        end = ' class="end"' if table.ends_section(number) else ""
        rows.append(f"<tr{end}>{cells}</tr>")
    return (
        f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
