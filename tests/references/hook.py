"""What mkdocs does besides its own work: the pages are written for the Markdown view of a hosting site too.

- Links to files outside of docs/ lead to the page that has their text, or become plain text.
- Headings have the anchors that hosting sites give them.
- Lists may follow a line of text at once, and be nested by two spaces.
- Files such as CHANGELOG.md become pages.
- In the generated references, blocks of text are coloured as what they are.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}
"""Files outside of docs/ that are pages of the site."""
STANDS_FOR = {**PAGES, "README.md": "index.md"}


def on_config(config: Any) -> Any:
    """Put the pages of a folder where the navigation names it, and give headings their anchors."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    config.nav = _expanded(config.nav, Path(config.docs_dir), _named(config.nav))
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that stand outside of docs/."""
    from mkdocs.structure.files import File

    for name, page in PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Write a page as Python-Markdown reads it."""
    address = page.file.src_uri
    outside = {page: name for name, page in PAGES.items()}
    place = ROOT / outside[address] if address in outside else Path(config.docs_dir) / address
    return as_python_markdown(coloured(address, relinked(markdown, place, address)))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Mark options, so that no line ends within one."""
    return re.sub(r"<code>(--?[a-z][\w-]*)(?= [^<]*</code>|</code>)", r'<code><span class="option">\1</span>', html)


def slug(text: str, separator: str = "-") -> str:
    """The anchor of a heading, as hosting sites make it.

    >>> slug("What it costs: `k`, d_sae & more")
    'what-it-costs-k-d_sae--more'
    """
    return re.sub(r"[^\w -]", "", text.strip().lower()).replace(" ", separator)


def relinked(markdown: str, place: Path, address: str) -> str:
    """A page's text with links that lead somewhere on the site.

    Args:
        markdown: the text.
        place: the file that has it.
        address: the page on the site, such as "guides/text.md".
    """
    docs = ROOT / "docs"

    def link(found: re.Match[str]) -> str:
        target, _, anchor = found[2].partition("#")
        if "://" in target or target.startswith("mailto:") or not target:
            return found[0]
        file = (place.parent / target).resolve()
        if file.is_relative_to(docs):
            reached = str(file.relative_to(docs))
        elif file.is_relative_to(ROOT) and (name := str(file.relative_to(ROOT))) in STANDS_FOR:
            reached, anchor = STANDS_FOR[name], anchor if name in PAGES else ""
        else:
            return found[1]  # it is in the repository alone
        up = "../" * address.count("/")
        return f"[{found[1]}]({up}{reached}{'#' + anchor if anchor else ''})"

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    # An image is a link after a sign; its text is kept.
    parts[::2] = [re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", link, part) for part in parts[::2]]
    return "".join(parts)


def as_python_markdown(markdown: str) -> str:
    """A text whose lists follow a blank line and are nested by four spaces."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        item = re.match(r"( *)(?:[-*]|\d+\.) ", line)
        if not fenced and item:
            before = lines[-1] if lines else ""
            if len(item[1]) in (2, 3):
                line = " " * 4 + line.lstrip()
            elif before.strip() and not item[1] and not re.match(r" *(?:[-*]|\d+\.) |  ", before):
                lines.append("")
        lines.append(line)
    return "\n".join(lines) + "\n"


def coloured(address: str, markdown: str) -> str:
    """The blocks of text of a generated reference as what they are: lines of the shell, signatures or examples."""
    if address == "reference/cli.md":
        return markdown.replace("```text\n", "```bash\n")
    if address == "reference/api.md":
        return markdown.replace("```text\n>>>", "```pycon\n>>>").replace("```text\n", "```python\n")
    return markdown


def _named(entries: Any) -> set[str]:
    """All texts of the navigation: pages and folders."""
    if isinstance(entries, str):
        return {entries}
    inner = entries.values() if isinstance(entries, dict) else entries
    return set[str]().union(*map(_named, inner))


def _expanded(entry: Any, docs: Path, named: set[str]) -> Any:
    if isinstance(entry, dict):
        ((title, inner),) = entry.items()
        return {title: _pages(inner, docs, named) if _is_folder(inner) else _expanded(inner, docs, named)}
    if isinstance(entry, list):
        parts = [_pages(one, docs, named) if _is_folder(one) else [_expanded(one, docs, named)] for one in entry]
        return [page for part in parts for page in part]
    return entry


def _is_folder(entry: Any) -> bool:
    return isinstance(entry, str) and entry.endswith("/")


def _pages(folder: str, docs: Path, named: set[str]) -> list[str]:
    """The pages of a folder that the navigation does not name: the index, then the others by their titles."""
    pages = [path for path in (docs / folder).glob("*.md") if folder + path.name not in named]
    pages.sort(key=lambda path: (path.name != "index.md", path.read_text().partition("\n")[0].lower()))
    return [folder + path.name for path in pages]
