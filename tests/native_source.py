"""C++ sources as statements, for rules that no compiler at hand checks. Not a parser: it knows
brackets, literals and comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

TOKENS = re.compile(
    r"""//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'"""
    r"""|\#(?:[^\n\\]|\\.|\\\n)*"""
    r"""|[A-Za-z_]\w*|\d[\w.'+]*|::|->|<<=|>>=|[-+*/%&|^<>=!]=|&&|\|\||\+\+|--|\S""",
    re.DOTALL,
)
SKIPPED = ("//", "/*", "#")
DECLARING = {
    "const",
    "constexpr",
    "static",
    "auto",
    "typedef",
    "using",
    "template",
    "struct",
    "enum",
    "class",
    "unsigned",
    "extern",
    "inline",
    "explicit",
    "typename",
    "volatile",
}
LEADING = {"if", "for", "while", "switch"}
NO_TYPES = {"return", "throw", "delete", "goto", "new", "co_return", "else", "do", "case"}


@dataclass
class Token:
    text: str
    line: int


@dataclass
class Group:
    """What is inside a pair of brackets, or a whole file."""

    opening: str
    line: int
    items: list[Token | Group] = field(default_factory=list)

    @property
    def is_block(self) -> bool:
        """Whether statements are in it: an initializer or an enumeration has none."""
        texts = [text(item) for item in self.items]
        return self.opening == "{" and (not texts or ";" in texts or texts[-1] == "{")


def text(item: Token | Group) -> str:
    return item.opening if isinstance(item, Group) else item.text


def parse(source: str) -> Group:
    stack, line, last = [Group("", 1)], 1, 0
    for match in TOKENS.finditer(source):
        line, last = line + source.count("\n", last, match.start()), match.start()
        token = match.group()
        if token.startswith(SKIPPED):
            continue
        if token in "([{":
            stack.append(Group(token, line))
            stack[-2].items.append(stack[-1])
        elif token in ")]}":
            stack.pop()
        else:
            stack[-1].items.append(Token(token, line))
    return stack[0]


def groups(group: Group) -> Iterator[Group]:
    yield group
    for item in group.items:
        if isinstance(item, Group):
            yield from groups(item)


def statements(block: Group) -> Iterator[list[Token | Group]]:
    """Those that end in a semicolon, without what leads them: conditions, loop headers, else,
    labels.
    """
    found: list[Token | Group] = []
    for item in block.items:
        if text(item) == ";":
            yield body(found)
            found = []
        elif (
            isinstance(item, Group)
            and item.is_block
            and not any(text(x) in ("=", "return") for x in found)
        ) or (
            text(item) == ":"
            and len(found) in (1, 2)
            and text(found[0]) in ("public", "private", "protected", "default", "case")
        ):
            found = []
        else:
            found.append(item)


def body(statement: list[Token | Group]) -> list[Token | Group]:
    while statement:
        first = text(statement[0])
        if first == "else" or first == "do":
            statement = statement[1:]
        elif first in LEADING:
            at = next(i for i, item in enumerate(statement) if text(item) == "(")
            statement = statement[at + 1 :]
        else:
            break
    return statement


def declares(statement: list[Token | Group]) -> bool:
    """Whether it begins with a type: two names, perhaps with template arguments, `*` or `&`
    between.
    """
    words = [text(item) for item in statement]
    if words[0] in DECLARING:
        return True
    if not re.match(r"[A-Za-z_]", words[0]) or words[0] in NO_TYPES:
        return False
    i = 1
    while i + 1 < len(words) and words[i] == "::":
        i += 2
    if i < len(words) and words[i] == "<":
        depth = 1
        while depth and i + 1 < len(words):
            i += 1
            depth += {"<": 1, ">": -1}.get(words[i], 0)
        i += 1
    while i < len(words) and words[i] in ("*", "&", "const", "::"):
        i += 2 if words[i] == "::" else 1
    return i < len(words) and bool(re.match(r"[A-Za-z_]", words[i]))


def in_angles(statement: list[Token | Group]) -> set[int]:
    """Places between the angle brackets of template arguments of a call, as in f<a, b>(x)."""
    found: set[int] = set()
    words = [text(item) for item in statement]
    for i, word in enumerate(words):
        if word != "<":
            continue
        depth, j = 1, i
        while depth and j + 1 < len(words) and words[j + 1] not in (";", "&&", "||"):
            j += 1
            depth += {"<": 1, ">": -1}.get(words[j], 0)
        if depth == 0 and j + 1 < len(words) and words[j + 1] in ("(", "::", "{"):
            found |= set(range(i, j))
    return found


def comma_operators(source: str) -> list[int]:
    """Lines on which a statement is continued by a comma; in a loop's header too."""
    lines = []
    for group in groups(parse(source)):
        for statement in statements(group) if group.opening in ("", "{") else ():
            lines += commas(statement)
        if group.opening == "(" and ";" in [text(item) for item in group.items]:
            *_, step = parts(group.items, ";")
            lines += commas(step)
    return sorted(lines)


def commas(statement: list[Token | Group]) -> list[int]:
    if not statement or declares(statement):
        return []
    inside = in_angles(statement)
    return [x.line for i, x in enumerate(statement) if text(x) == "," and i not in inside]


def parts(items: list[Token | Group], separator: str) -> Iterator[list[Token | Group]]:
    part: list[Token | Group] = []
    for item in items:
        if text(item) == separator:
            yield part
            part = []
        else:
            part.append(item)
    yield part


def nested_conditionals(source: str) -> list[int]:
    """Lines of conditional expressions that are part of another one."""
    lines = []
    for group in groups(parse(source)):
        for piece in parts(group.items, ";"):
            for operand in parts(piece, ","):
                inside = [
                    x
                    for item in operand
                    if isinstance(item, Group) and not item.is_block
                    for x in groups(item)
                ]
                own = [x.line for x in operand if text(x) == "?"]
                deeper = [x.line for g in inside for x in g.items if text(x) == "?"]
                lines += own[1:] + (deeper if own else [])
    return sorted(lines)


def several_on_a_line(source: str) -> list[int]:
    """Lines on which two statements of the same block end."""
    lines = set()
    for group in groups(parse(source)):
        ends = [x.line for x in group.items if text(x) == ";"] if group.opening in ("", "{") else []
        lines |= {line for line in ends if ends.count(line) > 1}
    return sorted(lines)
