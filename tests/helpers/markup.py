"""Reads the HTML that results show in notebooks."""

from html.parser import HTMLParser


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        assert not attrs, "no style of its own"
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        assert self.open, f"text outside of any element: {data!r}"
        self.cells.append((self.open[-1], data))


def cells_of(markup):
    """The texts in order, each with the element around it; AssertionError unless it is well formed.

    Every element is closed in its turn, and none has an attribute.
    """
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    assert not reader.open
    return reader.cells
