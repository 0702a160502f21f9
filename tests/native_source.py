"""Splits C++ sources into statements, for style rules that no compiler checks.

It is not a full parser: it distinguishes only brackets, literals, comments and other tokens.
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
DECLARATION_KEYWORDS = {
    *("const", "constexpr", "static", "auto", "typedef", "using", "template", "struct", "enum"),
    *("class", "unsigned", "extern", "inline", "explicit", "typename", "volatile"),
}
CONTROL_KEYWORDS = {"if", "for", "while", "switch"}
OTHER_KEYWORDS = {"return", "throw", "delete", "goto", "new", "co_return", "else", "do", "case"}


@dataclass
class Token:
    text: str
    line: int


@dataclass
class Group:
    """The content of a pair of brackets, or a whole file."""

    opening: str
    line: int
    items: list[Token | Group] = field(default_factory=list)

    @property
    def is_block(self) -> bool:
        """Whether it contains statements, unlike an initializer or an enumeration."""
        texts = [text(item) for item in self.items]
        return self.opening == "{" and (not texts or ";" in texts or texts[-1] == "{")


def text(item: Token | Group) -> str:
    return item.opening if isinstance(item, Group) else item.text


def parse(source: str) -> Group:
    stack = [Group("", 1)]
    line = 1
    last = 0
    for match in TOKENS.finditer(source):
        line += source.count("\n", last, match.start())
        last = match.start()
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
    """Statements that end in a semicolon, without conditions, loop headers, else and labels."""
    statement: list[Token | Group] = []
    for item in block.items:
        if text(item) == ";":
            yield body(statement)
            statement = []
        elif _is_body(item, statement) or _is_label(item, statement):
            statement = []
        else:
            statement.append(item)


def _is_body(item: Token | Group, before: list[Token | Group]) -> bool:
    """Whether the item is a block that is not part of an assignment or a return statement."""
    is_block = isinstance(item, Group) and item.is_block
    return is_block and not any(text(x) in ("=", "return") for x in before)


def _is_label(item: Token | Group, before: list[Token | Group]) -> bool:
    """Whether the item is the colon of a label."""
    labels = ("public", "private", "protected", "default", "case")
    return text(item) == ":" and len(before) in (1, 2) and text(before[0]) in labels


def body(statement: list[Token | Group]) -> list[Token | Group]:
    """The statement without conditions, loop headers and else in front of it."""
    while statement:
        first = text(statement[0])
        if first == "else" or first == "do":
            statement = statement[1:]
        elif first in CONTROL_KEYWORDS:
            header = next(i for i, item in enumerate(statement) if text(item) == "(")
            statement = statement[header + 1 :]
        else:
            break
    return statement


def declares(statement: list[Token | Group]) -> bool:
    """Whether a statement is a declaration.

    It then starts with a keyword, or with two names that may be separated by template arguments,
    `*` or `&`.
    """
    words = [text(item) for item in statement]
    if words[0] in DECLARATION_KEYWORDS:
        return True
    if not re.match(r"[A-Za-z_]", words[0]) or words[0] in OTHER_KEYWORDS:
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


def template_argument_indices(statement: list[Token | Group]) -> set[int]:
    """Indices of the tokens within template arguments of a call, as in f<a, b>(x)."""
    indices: set[int] = set()
    words = [text(item) for item in statement]
    for i, word in enumerate(words):
        if word != "<":
            continue
        depth = 1
        j = i
        while depth and j + 1 < len(words) and words[j + 1] not in (";", "&&", "||"):
            j += 1
            depth += {"<": 1, ">": -1}.get(words[j], 0)
        if depth == 0 and j + 1 < len(words) and words[j + 1] in ("(", "::", "{"):
            indices |= set(range(i, j))
    return indices


def comma_operators(source: str) -> list[int]:
    """Lines of comma operators in statements and in the steps of loops."""
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
    excluded = template_argument_indices(statement)
    return [x.line for i, x in enumerate(statement) if text(x) == "," and i not in excluded]


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
                nested_groups = [
                    x
                    for item in operand
                    if isinstance(item, Group) and not item.is_block
                    for x in groups(item)
                ]
                outer = [x.line for x in operand if text(x) == "?"]
                inner = [x.line for g in nested_groups for x in g.items if text(x) == "?"]
                lines += outer[1:] + (inner if outer else [])
    return sorted(lines)


def several_statements_on_a_line(source: str) -> list[int]:
    """Lines on which two statements of the same block end."""
    lines = set()
    for group in groups(parse(source)):
        ends = [x.line for x in group.items if text(x) == ";"] if group.opening in ("", "{") else []
        lines |= {line for line in ends if ends.count(line) > 1}
    return sorted(lines)
