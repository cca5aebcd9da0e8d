"""Conventions that no linter checks: names, sizes, docstrings, the public surface, determinism."""

from __future__ import annotations

import ast
import subprocess

import pytest
from source_tree import CHECKOUT, Source, calls, dotted, imports, sources

import engine
from engine import errors
from engine.errors import EngineError, ErrorCode

BANNED_WORDS = ("Manager", "Helper", "Util", "Impl", "Processor", "Info")
BANNED_FILES = ("common.py", "misc.py", "shared.py", "models.py", "utils.py", "helpers.py")
FILE_BUDGET = 450
LARGER_FILES = {
    "engine/domain/progress.py": "the reducer: its rules are read together or not at all",
}
PUBLIC_NAMES = [
    "AgentCall",
    "AgentFailure",
    "EngineError",
    "EngineSettings",
    "ErrorCode",
    "FailureReason",
    "WorkflowEngine",
    "tool",
]
NOT_DETERMINISTIC = (
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
    "time.time",
    "time.monotonic",
    "time.perf_counter",
    "time.sleep",
    "asyncio.sleep",
    "uuid.uuid1",
    "uuid.uuid4",
    "uuid4",
    "os.getenv",
    "os.urandom",
    "open",
    "print",
    "input",
    "hash",
)
NOT_DETERMINISTIC_MODULES = (
    "random",
    "secrets",
    "time",
    "uuid",
    "socket",
    "os",
    "io",
    "pathlib",
    "subprocess",
    "threading",
    "concurrent",
    "logging",
)


def every_source() -> list[Source]:
    return sources()


def named_nodes(source: Source) -> list[str]:
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in ast.walk(source.tree) if isinstance(node, kinds)]


def words_of(name: str) -> list[str]:
    """Split ``CamelCase`` into its words."""
    spaced = "".join(f" {letter}" if letter.isupper() else letter for letter in name)
    return spaced.replace("_", " ").split()


def test_no_banned_word_in_a_class_name():
    banned = [
        f"{source.path}: {node.name}"
        for source in every_source()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
        and any(word in BANNED_WORDS or word.removesuffix("s") in BANNED_WORDS for word in words_of(node.name))
    ]
    assert banned == []


def test_no_banned_file_name():
    words = tuple(word.lower() for word in BANNED_WORDS)
    banned = [
        source.path
        for source in every_source()
        for name in [source.path.rpartition("/")[2]]
        if name in BANNED_FILES
        or any(part in words or part.removesuffix("s") in words for part in name.removesuffix(".py").split("_"))
    ]
    assert banned == []


def test_files_keep_their_budget():
    sizes = {source.path: source.lines for source in every_source()}
    too_long = {path: lines for path, lines in sizes.items() if lines > FILE_BUDGET and path not in LARGER_FILES}
    assert too_long == {}


def test_exceptions_to_the_budget_are_needed_and_bounded():
    sizes = {source.path: source.lines for source in every_source()}
    assert {path: sizes[path] for path in LARGER_FILES if not FILE_BUDGET < sizes[path] <= 600} == {}


def test_every_module_has_a_docstring():
    silent = [source.path for source in sources("engine", "activities", "workflows", "worker.py", "examples")]
    silent = [path for path in silent if not documented(path)]
    assert silent == []


def documented(path: str) -> bool:
    return bool(ast.get_docstring(ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))))


def test_public_names_are_pinned():
    assert engine.__all__ == PUBLIC_NAMES
    assert sorted(engine.__all__) == engine.__all__
    assert dir(engine) == PUBLIC_NAMES


@pytest.mark.parametrize("name", PUBLIC_NAMES)
def test_a_public_name_resolves_and_is_documented(name: str):
    found = getattr(engine, name)
    assert found.__name__ == name
    assert found.__doc__


def test_an_unknown_name_says_so():
    with pytest.raises(AttributeError, match="Nothing"):
        _ = engine.Nothing  # pyright: ignore[reportAttributeAccessIssue] # that is the point


def test_every_port_method_has_a_docstring():
    protocols = [
        (source, node)
        for source in sources("engine/ports")
        for node in source.tree.body
        if isinstance(node, ast.ClassDef) and any(dotted(base) == "Protocol" for base in node.bases)
    ]
    assert len(protocols) >= 9
    silent = [
        f"{source.path}: {node.name}.{method.name}"
        for source, node in protocols
        for method in node.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not ast.get_docstring(method)
    ]
    silent += [f"{source.path}: {node.name}" for source, node in protocols if not ast.get_docstring(node)]
    assert silent == []


def test_every_error_code_is_in_the_tree():
    drawn = {word for words in drawn_tree() for word in words[1:2]}
    assert {code.value for code in ErrorCode} <= drawn


def test_every_error_class_is_in_the_tree_with_its_code():
    codes = {words[0]: words[1] for words in drawn_tree() if len(words) > 1 and words[0].endswith("Error")}
    classes = every_subclass(EngineError)
    assert {cls.__name__ for cls in classes if cls.__name__ != "NotFoundError"} == set(codes)
    assert {cls.__name__: cls.code.value for cls in classes if cls.__name__ in codes} == codes


def drawn_tree() -> list[list[str]]:
    """Return the words of each line of the tree, without its branches."""
    return [[word for word in line.split() if word[0].isascii()] for line in (errors.__doc__ or "").splitlines()]


def every_subclass(cls: type[EngineError]) -> set[type[EngineError]]:
    own = {sub for sub in cls.__subclasses__() if sub.__module__.startswith("engine")}
    return own.union(*(every_subclass(sub) for sub in own)) if own else own


def test_workflows_and_domain_have_no_clock_no_chance_and_no_io():
    deterministic = sources("engine/domain", "workflows")
    called = [
        f"{source.path}:{node.lineno} calls {name}"
        for source in deterministic
        for name, node in calls(source)
        if name in NOT_DETERMINISTIC or name.removeprefix("datetime.") in NOT_DETERMINISTIC[:3]
    ]
    imported = [
        f"{source.path}:{line} imports {name}"
        for source in deterministic
        for name, line in imports(source)
        if name.partition(".")[0] in NOT_DETERMINISTIC_MODULES
    ]
    environment = [
        f"{source.path}:{node.lineno} reads the environment"
        for source in deterministic
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and dotted(node) == "os.environ"
    ]
    assert called + imported + environment == []


def test_the_check_for_clocks_sees_one():
    tree = ast.parse("from datetime import datetime\nnow = datetime.now()\nimport datetime as d\nx = d.datetime.now()")
    seen = [name for name, _ in calls(Source("x.py", 1, tree))]
    assert seen[0] in NOT_DETERMINISTIC
    assert seen[1].partition(".")[2] in NOT_DETERMINISTIC


def test_nothing_committed_names_a_machine():
    """No path of a workplace, no address of a package registry."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    words = ("/" + "work/", "/home/" + "user", "/ro" + "ot/", "pypi" + ".org", "files.python" + "hosted")
    named = [
        f"{name}: {word}"
        for name in listed.split("\0")
        if name and (CHECKOUT / name).is_file()
        for text in [(CHECKOUT / name).read_text(encoding="utf-8", errors="ignore")]
        for word in words
        if word in text
    ]
    assert named == []
