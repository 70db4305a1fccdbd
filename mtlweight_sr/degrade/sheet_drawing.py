"""Pictures in rows and columns, with headings above and captions below."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["Heading", "Lines", "Row", "draw_sheet"]

_ZOOM = 3
_MARGIN, _GAP, _LINE, _INDENT, _TITLE = 28, 28, 16, 14, 30
_MOST_LINES = 4
_INK, _FADED, _ACCENT, _FRAME = "#1a1a1a", "#6a6a6a", "#b8400a", "#cccccc"

Lines = Sequence[Sequence[str]]
"""Lines of text, each in pieces; a piece is what is compared between the captions of a row."""


class Heading(NamedTuple):
    """What stands above a column."""

    name: str
    paragraphs: Sequence[str]


class Row(NamedTuple):
    """A picture per column, uint8 `[3, h, w]`, and what stands below them."""

    pictures: Sequence[Tensor]
    about: Sequence[str]
    """Lines below the first picture."""
    captions: Sequence[Lines]
    """One per further picture, all with the same numbers of lines and pieces."""


def draw_sheet(
    headings: Sequence[Heading], rows: Sequence[Row], *, title: str, legend: str
) -> Image.Image:
    """Draws a sheet; pictures are enlarged threefold, pieces that differ within a row coloured."""
    sheet = _Sheet(headings, rows, legend)
    sheet.draw(title, headings, rows)
    return sheet.image


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # The font that comes with matplotlib: Pillow's own has no Greek letters.
    package = find_spec("matplotlib")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("The sheet's font comes with matplotlib; install mtlweight[sr].")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data/fonts/ttf" / name, size)


class _Sheet:
    def __init__(self, headings: Sequence[Heading], rows: Sequence[Row], legend: str) -> None:
        self.small, self.bold, self.big = _font(11), _font(14, bold=True), _font(18, bold=True)
        pictures = [picture for row in rows for picture in row.pictures]
        captions = [caption for row in rows for caption in row.captions]
        self.height = _ZOOM * max(picture.shape[1] for picture in pictures)
        self.width = max(
            _ZOOM * max(picture.shape[2] for picture in pictures),
            *(self._length(line) for caption in captions for line in caption),
        )
        whole = len(headings) * (self.width + _GAP) - _GAP
        self.legend = self._wrapped(legend, whole)
        self.texts = [
            [line for part in heading.paragraphs for line in self._wrapped(part, self.width)]
            for heading in headings
        ]
        self.top = _MARGIN + _TITLE + _LINE * len(self.legend) + 16
        self.first = self.top + _LINE + 14 + _LINE * max(map(len, self.texts))
        self.step = self.height + 10 + _LINE * max(map(len, captions)) + _GAP
        size = whole + 2 * _MARGIN, self.first + len(rows) * self.step - _GAP + _MARGIN
        self.image = Image.new("RGB", size, "white")
        self.pen = ImageDraw.Draw(self.image)

    def draw(self, title: str, headings: Sequence[Heading], rows: Sequence[Row]) -> None:
        self._text((_MARGIN, _MARGIN), title, self.big)
        self._lines((_MARGIN, _MARGIN + _TITLE), self.legend, _FADED)
        for column, (heading, lines) in enumerate(zip(headings, self.texts, strict=True)):
            x = self._x(column)
            self._text((x, self.top), self._fitted(heading.name, self.width, self.bold), self.bold)
            self._lines((x, self.top + _LINE + 6), lines, _FADED)
        for index, row in enumerate(rows):
            y = self.first + index * self.step
            for column, picture in enumerate(row.pictures):
                self._picture((self._x(column), y), picture)
            below = y + self.height + 8
            about = [self._fitted(line, self.width, self.small) for line in row.about]
            self._lines((_MARGIN, below), about, _INK)
            for column, caption in enumerate(row.captions, start=1):
                self._caption((self._x(column), below), caption, row.captions)

    def _x(self, column: int) -> int:
        return _MARGIN + column * (self.width + _GAP)

    def _length(self, pieces: Sequence[str]) -> int:
        return _INDENT + sum(int(self.small.getlength(piece)) + 1 for piece in pieces)

    def _text(
        self, at: tuple[float, int], text: str, font: ImageFont.FreeTypeFont, ink: str = _INK
    ) -> None:
        self.pen.text(at, text, ink, font)

    def _lines(self, at: tuple[int, int], lines: Sequence[str], ink: str) -> None:
        for i, line in enumerate(lines):
            self._text((at[0], at[1] + _LINE * i), line, self.small, ink)

    def _fitted(self, text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
        if font.getlength(text) <= width:
            return text
        while text and font.getlength(f"{text}…") > width:
            text = text[:-1]
        return f"{text}…"

    def _wrapped(self, text: str, width: int) -> list[str]:
        lines: list[str] = []
        for word in text.split():
            if lines and self.small.getlength(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 1], " ".join(lines[_MOST_LINES - 1 :])]
        return [self._fitted(line, width, self.small) for line in lines]

    def _picture(self, at: tuple[int, int], picture: Tensor) -> None:
        pixels = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        size = _ZOOM * pixels.width, _ZOOM * pixels.height
        self.image.paste(pixels.resize(size, Image.Resampling.NEAREST), at)
        frame = (at[0] - 1, at[1] - 1, at[0] + size[0], at[1] + size[1])
        self.pen.rectangle(frame, outline=_FRAME)

    def _caption(self, at: tuple[int, int], caption: Lines, row: Sequence[Lines]) -> None:
        for i, line in enumerate(caption):
            x: float = at[0] + _INDENT
            y = at[1] + _LINE * i
            if i % 2 == 0:
                self._text((at[0], y), str(1 + i // 2), self.small, _FADED)
            for j, piece in enumerate(line):
                same = all(other[i][j] == piece for other in row)
                self._text((x, y), piece, self.small, _INK if same else _ACCENT)
                x += self.small.getlength(piece)
