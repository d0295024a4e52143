"""HTML elements of a self-contained page: all text is escaped, all pictures are embedded."""

import base64
import html
import io
from collections.abc import Iterable

from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --pale: #55636f; --line: #d5dde6; --paper: #fff; --block: #f4f6f9; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; }
h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
p.note, figcaption { color: var(--pale); }
figcaption { margin-top: .3rem; }
figure { margin: 1rem 0; }
div.scroll { overflow-x: auto; }
img { display: block; width: auto; height: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
th { color: var(--pale); font-weight: 600; }
table.names td { overflow-wrap: anywhere; }
table.figures td { text-align: right; white-space: nowrap; }
table.figures tr:first-child th { text-align: right; vertical-align: bottom; border-bottom: 1px solid var(--line); }
pre { background: var(--block); padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; }
  table.names th, table.names td { display: block; padding-right: 0; }
  table.names td { padding-bottom: .5rem; }
  div.wide + figcaption::before { content: "↔ scrolls sideways. "; }
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde4ea; --pale: #9aa8b5; --line: #35424e; --paper: #14191f; --block: #1e262e; }
  img { filter: brightness(.9); border-radius: 4px; }
}
"""

_LEAST = 0.62
"""Smallest scale of a picture wider than `_PHONE`; on a narrower page it scrolls sideways, so that the text in pictures of
several panels remains legible."""
_PHONE = 500
"""Pixels."""
_DPI = 110


def page(title: str, sections: Iterable[str]) -> str:
    """The whole page, from sections in HTML and a title as text."""
    title, body = html.escape(title), "\n".join(sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """A heading; level 1 is the page's title."""
    return f"<h{level}>{html.escape(text)}</h{level}>"


def note(text: str) -> str:
    """A paragraph of explanation."""
    return f'<p class="note">{html.escape(text)}</p>'


def verbatim(text: str) -> str:
    """Preformatted text."""
    return f"<pre>{html.escape(text)}</pre>"


def table(rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and values."""
    cells = ((html.escape(name), html.escape(text)) for name, text in rows)
    body = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>\n" for name, text in cells)
    return f'<table class="names">{body}</table>'


def figures(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of figures with column names."""

    def row(cells: tuple[str, ...], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>\n"

    body = row(head, "th") + "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table class="figures">{body}</table></div>'


def picture(figure: Figure, caption: str) -> str:
    """A figure with its caption, on white even in dark mode."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    text, least = html.escape(caption), round(_LEAST * figure.get_figwidth() * _DPI)
    kind, size = ("scroll wide", f' style="min-width: {least}px"') if least > _PHONE else ("scroll", "")
    image = f'<img alt="{text}" src="data:image/png;base64,{data}"{size}>'
    return f'<figure><div class="{kind}">{image}</div><figcaption>{text}</figcaption></figure>'
