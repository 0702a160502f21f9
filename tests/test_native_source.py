"""The checks of C++ style detect what they are for, and nothing else."""

from __future__ import annotations

import pytest

from tests.native_source import comma_operators, nested_conditionals, several_statements_on_a_line

COMMAS = {
    "assignments": ("void f() { a = 1, b = 2; }", 1),
    "after a condition": ("void f() { if (x) a = 1, b = 2; else c = 3, d = 4; }", 2),
    "members, elements, pointers": ("void f() { p->a = 1, x[0] = 2, *q = 3, ++i; }", 3),
    "calls": ("void f() { g(a, b), h(c); }", 1),
    "a returned expression": ("int f() { return a, b; }", 1),
    "a loop's step": ("void f() { for (int i = 0, j = 1; i < j; ++i, ++j) g(i, j); }", 1),
    "in a lambda": ("void f() { each([&](int a, int b) { x = a, y = b; }); }", 1),
    "in a lambda with a name": ("void f() { const auto g = [&] { a = b, c = d; }; }", 1),
    "declarations": (
        "void f() { int a = 1, b = 2; const X c{1, 2}, d{3}; float *x, *y; a::B<C, D> e = f, g; }",
        0,
    ),
    "arguments and lists": (
        "void f() { g<A, B>(x, y); v = {1, 2}; const int n[] = {1, 2}; return {a, b}; }",
        0,
    ),
    "constructors": ("struct T { T(int a, int b) : x(a), y(b) {} int x, y; };", 0),
    "enumerations and templates": (
        "enum E { kA, kB }; template <class A, int b> void f(A x, int y);",
        0,
    ),
    "comments and text": (
        'void f() { g(); } // a = 1, b = 2;\nconst char* s = "a = 1, b = 2;";',
        0,
    ),
}


@pytest.mark.parametrize(("source", "count"), COMMAS.values(), ids=COMMAS)
def test_comma_operators_are_detected(source: str, count: int) -> None:
    assert comma_operators(source) == [1] * count


def test_nested_conditional_expressions_are_detected() -> None:
    for source in (
        "x = a ? b : c ? d : e;",
        "x = a ? (b ? c : d) : e;",
        "x = a ? f(b ? c : d) : e;",
    ):
        assert nested_conditionals(f"void f() {{ {source} }}") == [1]
    assert not nested_conditionals(
        "void f() { g(a ? b : c, d ? e : f); x = a ? b : c; y = a ? b : c; }"
    )


def test_several_statements_on_a_line_are_detected() -> None:
    assert several_statements_on_a_line("void f() {\n  a = 1; b = 2;\n  c = 3;\n}") == [2]
    assert not several_statements_on_a_line(
        "int f() { return 1; }\nvoid g() {\n  for (int i = 0; i < 3; ++i) h([&] { return i; });\n}"
    )
