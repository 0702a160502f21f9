"""Interpolations of configuration files are replaced as by OmegaConf, within a limit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sam2_fast.weights.config_files import read_yaml

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
pytest.importorskip("omegaconf", reason="OmegaConf is not installed")


def read(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    path = folder / "hostile.yaml"
    path.write_text(yaml.safe_dump(document))
    return read_yaml(path)


def test_keys_tables_lists_and_variables_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZE", "64")
    table = {"x": 1, "y": "${.x}", "deep": {"z": "${..x}"}}
    model = {
        "table": "${table}",
        "through": "${model.table.y}",
        "text": "a ${table.x} and ${ table[deep].z }",
        "list": ["${table.x}", "${model.list[0]}"],
        "variable": "${oc.env:SIZE}",
        "default": "${oc.env:NO_SUCH_VARIABLE,${table.x}}",
    }
    assert read(tmp_path, {"table": table, "model": model}) == {
        "table": {"x": 1, "y": 1, "deep": {"z": 1}},
        "through": 1,
        "text": "a 1 and 1",
        "list": [1, 1],
        "variable": "64",
        "default": "1",
    }


def test_a_resolver_of_the_program_is_called(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("half_for_tests", lambda value: value // 2)
    try:
        document = {"a": 8, "model": {"b": "${half_for_tests:${a}}"}}
        assert read(tmp_path, document) == {"b": 4}
    finally:
        OmegaConf.clear_resolver("half_for_tests")


def doubled(form: str, count: int) -> dict[str, Any]:
    """Entries that each name the one before it twice."""
    return {f"a{i}": form.format(f"${{a{i - 1}}}") for i in range(1, count)}


PAIRS = {f"a{i}": [f"${{a{i - 1}}}"] * 2 for i in range(1, 40)}
TABLE = {f"x{i}": f"${{b.x{i - 1}}}" * 2 for i in range(1, 40)}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "strings": ({"a0": "x", **doubled("{0}{0}", 40), "model": {"a": "${a39}"}}, "the limit is"),
    "lists": ({"a0": [1], **PAIRS, "model": {"a": "${a39}"}}, "the limit is"),
    "one long string": ({"a0": "x" * 9000, "model": {"a": "${a0}" * 900}}, "the limit is"),
    "a table": ({"a": {"x0": 1, **TABLE}, "b": "${a}", "model": {"c": "${b.x39}"}}, "itself"),
    "behind a missing key": (
        {
            "a0": "x",
            **doubled("{0}{0}", 40),
            "b": {"c": "${a39}"},
            "model": {"a": "${b.nothing}", "c": "${b}"},
        },
        "the limit is",
    ),
    "itself": ({"model": {"a": "${model.a}"}}, "name itself"),
    "each other": ({"a": "${b}", "b": "${a}", "model": {"a": "${a}"}}, "name itself"),
    "a chain": ({"a0": 1, **doubled("{0}", 2000), "model": {"a": "${a1999}"}}, "recursion"),
    "a missing key": ({"model": {"a": "${nothing}"}}, "'nothing' not found"),
    "a nested key": ({"a": 1, "k": "a", "model": {"b": "${model.${k}}"}}, "of keys"),
    "many nested keys": ({"model": {"a": "${" * 9000}}, "of keys"),
    "other resolvers": ({"a": 1, "model": {"b": "${oc.select:a}"}}, "of keys"),
}


@pytest.mark.reliability("38", "F15")
@pytest.mark.parametrize("name", HOSTILE)
def test_others_are_refused_fast_in_one_line(name: str, tmp_path: Path) -> None:
    document, reason = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(ValueError, match=reason) as caught:
        read(tmp_path, document)
    assert time.process_time() - started < 1
    assert str(caught.value).startswith("config_file ") and "\n" not in str(caught.value)
