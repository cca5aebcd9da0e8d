"""What no source file of ours may do: run text as code, unpickle, hand a shell a string, build SQL from values."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = [
    CHECKOUT / "worker.py",
    *(file for folder in ("engine", "activities", "workflows") for file in sorted((CHECKOUT / folder).rglob("*.py"))),
]
TREES = {str(file.relative_to(CHECKOUT)): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
BANNED_CALLS = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
    "tempfile.mktemp",
)
BANNED_MODULES = ("pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle", "jsonpickle", "telnetlib", "ftplib")
EXECUTORS = ("execute", "executemany", "executescript")
PASSED_ON = {
    "engine/adapters/sqlite/analytics.py": {"sums", "durations"},
    "engine/adapters/sqlite/connection.py": {"statement"},
    "engine/adapters/sqlite/pages.py": {"has_label"},
    "engine/adapters/sqlite/state_store.py": {"statement"},
}
"""Names that hold one of a module's constant statements: an item of a tuple of them, or an argument."""
TYPE_NARROWING = {
    "engine/adapters/temporal/payloads.py": "a stream's callback runs in a task; the assert tells the type checker",
}
"""The only asserts: none checks anything that could be otherwise, because python -O takes them out."""


def dotted(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{dotted(value)}.{name}"
        case _:
            return ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def dangerous_calls(tree: ast.AST) -> list[int]:
    return [
        node.lineno
        for name, node in calls(tree)
        if name in BANNED_CALLS or (name == "yaml.load" and not loads_plain_data(node, tree))
    ]


def loads_plain_data(call: ast.Call, tree: ast.AST) -> bool:
    """Whether the loader is yaml's safe one, or a subclass of it that stands in the same file."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and safe.intersection(map(dotted, node.bases)):
            safe.add(node.name)
    return any(keyword.arg == "Loader" and dotted(keyword.value) in safe for keyword in call.keywords)


def dangerous_imports(tree: ast.AST) -> list[int]:
    found: list[int] = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [node.lineno for name in names if name.partition(".")[0] in BANNED_MODULES]
    return found


def shells(tree: ast.AST) -> list[int]:
    """Return calls with ``shell=`` anything but the constant False."""
    return [
        node.lineno
        for _, node in calls(tree)
        for keyword in node.keywords
        if keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]


def statements_from_values(tree: ast.Module, passed_on: Collection[str] = ()) -> list[int]:
    """Return calls of ``execute`` whose statement is put together at run time."""
    constants = constant_names(tree) | set(passed_on)
    return [
        node.lineno
        for name, node in calls(tree)
        if name.rpartition(".")[2] in EXECUTORS and node.args and not is_constant(node.args[0], constants)
    ]


def constant_names(tree: ast.Module) -> set[str]:
    """Names that the module binds once, at its top, to text put together from constants."""
    constants: set[str] = set()
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if value is not None else []  # pyright: ignore[reportAttributeAccessIssue] # an AnnAssign then
        if value is not None and is_constant(value, constants):
            constants |= {target.id for target in targets if isinstance(target, ast.Name)}
    return constants


def is_constant(node: ast.expr, constants: set[str]) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in constants or (name.lstrip("_").isupper() and len(name) > 1)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_constant(left, constants) and is_constant(right, constants)
        case ast.IfExp(body=body, orelse=orelse):
            return is_constant(body, constants) and is_constant(orelse, constants)
        case ast.JoinedStr(values=values):
            return all(
                is_constant(part.value if isinstance(part, ast.FormattedValue) else part, constants) for part in values
            )
        case _:
            return False


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (dangerous_calls, "eval('1')"),
        (dangerous_calls, "import yaml\nyaml.load(text)"),
        (dangerous_calls, "import yaml\nyaml.load(text, Loader=yaml.Loader)"),
        (dangerous_calls, "import yaml\nclass L(yaml.Loader): ...\nyaml.load(text, Loader=L)"),
        (dangerous_imports, "import pickle"),
        (dangerous_imports, "def f():\n    from marshal import loads"),
        (shells, "subprocess.run(line, shell=True)"),
        (shells, "subprocess.run(line, shell=chosen)"),
        (statements_from_values, "def f(c, x):\n    c.execute(f'SELECT {x}')"),
        (statements_from_values, "def f(c, x):\n    c.execute('SELECT ' + x)"),
        (statements_from_values, "def f(c, x):\n    c.execute('SELECT %s' % x)"),
        (statements_from_values, "def f(c, x):\n    c.execute('SELECT {}'.format(x))"),
    ],
)
def test_a_rule_sees_what_it_is_for(rule, bad: str):
    assert rule(ast.parse(bad))


@pytest.mark.parametrize("rule", [dangerous_calls, dangerous_imports, shells], ids=lambda rule: rule.__name__)
def test_no_file_breaks_a_rule(rule):
    broken = {path: lines for path, tree in TREES.items() if (lines := rule(tree))}
    assert broken == {}


def test_statements_are_constants():
    broken = {
        path: lines for path, tree in TREES.items() if (lines := statements_from_values(tree, PASSED_ON.get(path, ())))
    }
    assert broken == {}


def test_no_check_is_an_assert():
    asserting = {path for path, tree in TREES.items() if any(isinstance(node, ast.Assert) for node in ast.walk(tree))}
    assert asserting == set(TYPE_NARROWING)


def test_nothing_listens_on_every_interface():
    found = {
        path: node.lineno
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::")
    }
    assert found == {}
