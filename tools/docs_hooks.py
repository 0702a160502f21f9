"""Hooks of mkdocs.yml: links of the repository become links of the site, packages lists of names.

Documents are also read in the repository, so their links are paths of files. Files outside
`docs/` are not part of the site: links to them become plain text.

A line `<!-- public names of PACKAGE -->` stands for the documentation of every name in the
package's `__all__`.
"""

from __future__ import annotations

import posixpath
import re
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

# Files of the repository root that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#|mailto:)[^)\s]+)\)")
INCLUDED = re.compile(r'^--8<-- "([\w./]+)"$', re.MULTILINE)
NAMES = re.compile(r"^<!-- public names of ([\w.]+) -->$", re.MULTILINE)


def listed_packages() -> list[str]:
    """The packages that the pages of docs/api list, in order."""
    pages = sorted((Path(__file__).resolve().parents[1] / "docs" / "api").glob("*.md"))
    return [name for page in pages for name in NAMES.findall(page.read_text())]


def public_names(package: str) -> list[str]:
    """Where each name in `__all__` of `package` is defined, such as `sam2_fast.ops.nms.nms`."""
    module = import_module(package)
    paths = []
    for name in module.__all__:
        value = getattr(module, name)
        if name.startswith("__"):
            continue
        home = getattr(value, "__module__", None)
        own = isinstance(home, str) and home.startswith("sam2_fast")
        paths.append(f"{home}.{value.__qualname__}" if own else f"{package}.{name}")
    return paths


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: object) -> str:
    """Include the files that `--8<--` names, and rewrite their links and those out of `docs/`."""
    folder = PurePosixPath("docs") / PurePosixPath(page.file.src_uri).parent

    def included(match: re.Match[str]) -> str:
        with open(match[1], encoding="utf-8") as file:
            return rewrite(file.read(), PurePosixPath(match[1]).parent, folder)

    def names(match: re.Match[str]) -> str:
        return "\n\n".join(f"::: {path}" for path in public_names(match[1]))

    text = NAMES.sub(names, INCLUDED.sub(included, markdown))
    return rewrite(text, folder, folder)


def rewrite(text: str, folder: PurePosixPath, page_folder: PurePosixPath) -> str:
    """`text` with links relative to `folder`, rewritten for a page in `page_folder`."""

    def link(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        path, hash_mark, anchor = target.partition("#")
        full = posixpath.normpath(folder / path)
        full = f"docs/{PAGES[full]}" if full in PAGES else full
        if not full.startswith("docs/"):
            return label
        return f"[{label}]({posixpath.relpath(full, page_folder)}{hash_mark}{anchor})"

    return LINK.sub(link, text)


def on_post_page(output: str, *, page: Any, config: Any, **_: object) -> str:
    """Search in files needs a script that the theme loads from the network; load ours."""
    up = "../" * page.file.dest_uri.count("/")
    return output.replace("https://unpkg.com/iframe-worker/shim", f"{up}assets/iframe_worker.js")


def on_post_template(output: str, *, template_name: str, config: Any, **_: object) -> str:
    """The same for pages that are no documents, such as 404.html."""
    return output.replace("https://unpkg.com/iframe-worker/shim", "/assets/iframe_worker.js")
