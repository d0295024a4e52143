"""What the site changes of the Markdown that the repository shows: the README is its first page, and links that lead out of
`docs/` become plain names, because what they lead to is no page."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files, config):
    """Add the README as `index.md`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    return files


def on_page_markdown(markdown, **_):
    """Only the names of links to files of the repository that are not in `docs/`."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)(?:\.\./)*(?![\w-]+\.(?:md|png)[#)])[^)]*\)", r"\1", markdown)
