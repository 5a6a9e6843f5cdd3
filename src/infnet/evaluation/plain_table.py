"""Tables as plain text, as wide as they need to be: for pipes and files, where nothing is cut to a terminal's width."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of aligned columns, the first ``left`` of them and the last to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(titles, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        last = len(cells) - 1
        padded = (
            cell.ljust(width) if index < left or index == last else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return [line(titles), "  ".join("-" * width for width in widths), *(line(row) for row in rows)]
