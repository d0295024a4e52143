"""Whatever the package or a page of docs/ cites by author and year is in the bibliography of docs/design.md, and the
reverse."""

import calendar
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DESIGN, LITERATURE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## 6. Literature")
KEYS = re.findall(r"^- \*\*(.+? \d{4})\*\*: ", LITERATURE, re.MULTILINE)
CITED = re.compile(r"(?<![\w-])(?:[A-Z][\w’'-]+|al\.) ?,? ?\(?(?:19|20)\d\d\b(?![-.]\d)")


def texts() -> dict[str, str]:
    """Sources and pages by path, each as one line of text without the marks of comments."""
    paths = [*(ROOT / "lior_jax").rglob("*.py"), *(ROOT / "examples").glob("*.py"), *(ROOT / "docs").glob("*.md")]
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}
    found["docs/design.md"] = DESIGN
    return {path: " ".join(re.sub(r"^\s*# ", "", text, flags=re.MULTILINE).split()) for path, text in found.items()}


def test_every_citation_is_in_the_bibliography():
    strange = [
        f"{path}: {text[max(0, at.start() - 40) : at.end()]}"
        for path, text in texts().items()
        for at in CITED.finditer(text)
        if not text[: at.end()].endswith(tuple(KEYS)) and at[0].split()[0] not in calendar.month_name
    ]
    assert not strange, "\n".join(strange)


def test_every_entry_is_cited():
    together = " ".join(texts().values())
    assert len(set(KEYS)) == len(KEYS) > 40
    assert not [key for key in KEYS if key not in together]
