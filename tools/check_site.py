"""Check the built documentation site: `python -m tools.check_site`, after `mkdocs build`.

Every public name is documented, and no page loads anything from the network.
"""

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path

from tools.docs_hooks import listed_packages, public_names

SITE = Path(__file__).resolve().parents[1] / "build" / "site"
LOADED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"(https?://[^\"]+)\"")


def documented() -> set[str]:
    """Names in the site's inventory of objects."""
    inventory = (SITE / "objects.inv").read_bytes().split(b"\n", 4)
    lines = zlib.decompress(inventory[4]).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def undocumented() -> list[str]:
    """Public names of the packages that pages list, and that the inventory lacks."""
    known = documented()
    return [
        name for package in listed_packages() for name in public_names(package) if name not in known
    ]


def external() -> list[str]:
    """Addresses from which pages load scripts, styles or images."""
    return sorted(
        {
            f"{page.relative_to(SITE)}: {address}"
            for page in SITE.rglob("*.html")
            for address in LOADED.findall(page.read_text())
        }
    )


def main() -> int:
    """Print what is wrong. Returns the exit status."""
    problems = [f"not documented: {name}" for name in undocumented()]
    problems += [f"loaded from the network: {address}" for address in external()]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(documented())} names documented, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
