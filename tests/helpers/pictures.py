"""What can be wrong with a figure however right its numbers are, measured on what is drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 7.0  # points of a letter
TOUCHING = 0.5  # pixels by which boxes may overlap: rounding
COUNTS = re.compile(r"step|epoch|batch size|examples|iteration|noise scale")
NEGATIVE = re.compile(r"^\$?\\?(mathdefault\{)?[-−]")


def faults(figure: Figure) -> list[str]:
    """A line for each thing that a reader would stumble over; none for a good figure."""
    FigureCanvasAgg(figure).draw()
    drawn = [axes for axes in figure.axes if axes.get_visible() and axes.axison]
    found = [f"{_name(axes)}: {fault}" for axes in drawn for fault in _of_axes(axes)]
    found += [f"{_name(axes)}: {fault}" for axes in drawn for fault in _of_legend(axes, figure)]
    found += _of_texts(figure)
    if not figure.axes:
        found.append("a figure without a panel")
    return found


def title_of(figure: Figure) -> str:
    """All titles of a figure, in a line."""
    titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
    return " ".join(" ".join(titles).split())


def _name(axes: Axes) -> str:
    return f"panel {axes.get_xlabel()!r} by {axes.get_ylabel()!r}"


def _of_axes(axes: Axes) -> Iterator[str]:
    if axes.get_label() == "<colorbar>":
        return
    if not _points_inside(axes):
        yield "it is empty"
    for axis, words in ((axes.xaxis, axes.get_xlabel()), (axes.yaxis, axes.get_ylabel())):
        labels = [label for label in axis.get_ticklabels(which="both") if _shown(label, axis, axes)]
        texts = [label.get_text() for label in labels]
        if not words and axis is axes.xaxis and not any(re.search(r"[a-zλ]", t) for t in texts):
            yield "an axis without a name"
        if COUNTS.search(words) and any(NEGATIVE.match(text) for text in texts):
            yield f"a count below zero on the axis {words!r}: {texts}"
        if odd := [text for text in texts if re.search(r"\\times ?10\^\{?-?[0-3]\}", text)]:
            yield f"small numbers as powers of ten: {odd}"
        if len(labels) < 2 and axis.get_scale() in ("log", "symlog", "linear"):
            lone = len(axis.get_majorticklocs()) == 1  # one size, one eigenvalue
            if not lone and axes.get_shared_y_axes().get_siblings(axes) == [axes]:
                yield f"{texts} alone is no scale on the axis {words!r}"
        labels.sort(key=lambda label: label.get_position()[0 if axis is axes.xaxis else 1])
        for one, other in itertools.pairwise(labels):
            if _overlap(one, other):
                yield f"tick labels {one.get_text()!r} and {other.get_text()!r} overlap"


def _points_inside(axes: Axes) -> int:
    """How many points of lines, patches and other shapes lie within the panel."""
    inside = 0
    for line in axes.lines:
        points = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=float))
        points = points[np.isfinite(points).all(1)] if len(points) else points
        inside += sum(axes.bbox.padded(1).contains(*point) for point in points)
    shapes = [*axes.patches, *axes.images, *axes.collections]
    return inside + sum(shape.get_window_extent().overlaps(axes.bbox) for shape in shapes)


def _of_legend(axes: Axes, figure: Figure) -> Iterator[str]:
    """The legend beside all panels, and clear of what is written there."""
    legends = [legend for legend in (axes.get_legend(), *figure.legends) if legend is not None]
    for legend in legends:
        box = legend.get_window_extent().padded(-TOUCHING)
        if box.overlaps(axes.bbox):
            yield "a legend lies on the data"
        texts = [axes.xaxis.label, axes.yaxis.label, axes.title]
        texts += [
            label
            for axis in (axes.xaxis, axes.yaxis)
            for label in axis.get_ticklabels(which="both")
            if _shown(label, axis, axes)
        ]
        for text in texts:
            if text.get_text() and text.get_window_extent().overlaps(box):
                yield f"a legend lies on {text.get_text()!r}"


def _of_texts(figure: Figure) -> Iterator[str]:
    """Letters that are large enough, and all of them within the figure."""
    frame = figure.bbox.padded(1)
    for text in figure.findobj(Text):
        if not (text.get_text().strip() and text.get_visible()) or _hidden_tick(text, figure):
            continue
        if text.get_fontsize() < SMALLEST:
            yield f"{text.get_text()!r} in {text.get_fontsize()} points"
        box = text.get_window_extent()
        if not (frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)):
            yield f"{text.get_text()!r} is cut off"


def _hidden_tick(text: Text, figure: Figure) -> bool:
    """Whether a text is a tick's label that is not drawn, since it lies beyond the axis."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return not _shown(text, axis, axes)
    return False


def _shown(label: Text, axis: object, axes: Axes) -> bool:
    """Whether a tick's label is drawn: it has a text and its tick is on the axis."""
    if not (label.get_visible() and label.get_text()):
        return False
    low, high = sorted(axes.get_xlim() if axis is axes.xaxis else axes.get_ylim())
    place = label.get_position()[0 if axis is axes.xaxis else 1]
    return bool(low <= place <= high)


def _overlap(one: Text, other: Text) -> bool:
    """Whether two labels share pixels; of slanted ones, whether they are nearer than a line."""
    first, second = one.get_window_extent(), other.get_window_extent()
    if one.get_rotation() in (0, 90):
        shared = Bbox.intersection(first, second)
        return shared is not None and min(shared.width, shared.height) > TOUCHING
    centres = [(box.x0 + box.x1) / 2 for box in (first, second)]
    return abs(centres[1] - centres[0]) < one.get_fontsize()
