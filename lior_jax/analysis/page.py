"""HTML pieces of a page that stands alone: everything that is said is escaped, every picture is inside it."""

import base64
import html
import io
from collections.abc import Iterable

from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #d5dde6; }
p.note, figcaption { color: #55636f; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
th { color: #55636f; font-weight: 600; white-space: nowrap; }
table.figures td { text-align: right; }
table.figures tr:first-child th { text-align: right; border-bottom: 1px solid #d5dde6; }
pre { background: #f4f6f9; padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole page of its sections, which are HTML already; the title is text."""
    title, body = html.escape(title), "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading; 1 is the page's own."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def note(text: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def verbatim(text: str) -> str:
    """Text as it stands, line by line."""
    return f"<pre>{html.escape(text)}</pre>"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for."""
    cells = ((html.escape(name), html.escape(text)) for name, text in rows)
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{text}</td></tr>\n" for name, text in cells) + "</table>"


def figures(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of figures under their names."""

    def row(cells: tuple[str, ...], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>\n"

    return '<table class="figures">' + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def picture(figure: Figure, caption: str) -> str:
    """A figure and its caption."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
