"""Conditions are compiled to closures over a grammar without loops, calls into Python or regular expressions.

    condition  = both {("or" | "||") both}          both = negation {("and" | "&&") negation}
    negation   = "not" negation | comparison        comparison = operand [operator operand]
    operator   = "=" "==" "!=" "<" "<=" ">" ">=" "in" "contains" "startsWith" "endsWith"
    operand    = "!" operand | "(" condition ")" | "[" [operand {"," operand}] "]" | function | literal | path
    function   = "has(" path ")" | "size(" operand ")" | "contains(" operand "," operand ")", also startsWith
                 and endsWith
    path       = input.kind | ${input.kind} | ${input.kind ?? "none"}

So ``!`` binds closer than ``=``, ``not`` does not, and comparisons can't be chained. What ``and``, ``or``,
``not`` and the whole condition look at must be a truth: a comparison or a path, and a path counts as true
only if its value is exactly ``true``. A missing path is null and never an error.

Equality is JSON's: deep, 1 equals 1.0, true does not equal 1, null equals only null. An ordering holds
between two numbers or two strings (by code point), otherwise it is false. ``in`` looks for an item of a list,
a part of a string, a key of an object, and is false otherwise; ``contains`` is ``in`` with its sides changed.
``size`` is that of a string (in characters), list or object, else null. The meaning of a stored condition
must not change between releases: a run in flight would take another road when it is replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeGuard

from engine.domain.paths import MAX_EXPRESSION_CHARS, MISSING, ExpressionError, Path, Scanner, read_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from engine.domain.json import JsonValue
    from engine.domain.paths import Scope

    _Evaluate = Callable[[Scope], JsonValue]
    _Test = Callable[[Scope], bool]
    _Compare = Callable[[JsonValue, JsonValue], bool]

__all__ = [
    "EVENTS",
    "MAX_CONDITION_DEPTH",
    "MAX_CONDITION_NODES",
    "MAX_TRIGGER_ENTRIES",
    "RESERVED_WORDS",
    "Condition",
    "Trigger",
    "json_equal",
    "parse_condition",
    "parse_trigger",
]

EVENTS: Final = ("completion", "failure", "timeout")
"""What a trigger can listen to, each written as an entry of its own."""
RESERVED_WORDS: Final = ("and", "false", "in", "not", "null", "or", "true")
"""Words that can't be a root, such as the name that ``foreach`` gives its item."""
MAX_CONDITION_DEPTH: Final = 32
"""Most parentheses, lists, calls and negations inside each other."""
MAX_CONDITION_NODES: Final = 1_000
"""Most operands in a condition."""
MAX_TRIGGER_ENTRIES: Final = 64


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition; made by ``parse_condition``.

    Attributes:
        text: as it was given.
        paths: the distinct paths it reads (one with another default is another one), in order of appearance.
    """

    text: str
    paths: tuple[Path, ...]
    _test: _Test = field(repr=False, compare=False)

    def evaluate(self, scope: Scope) -> bool:
        """Tell whether the condition holds; it raises nothing but what the scope's own look-up raises."""
        return self._test(scope)


@dataclass(frozen=True, slots=True)
class Trigger:
    """When a handoff is taken.

    Attributes:
        events: some of ``EVENTS``, any of which will do; empty means ``completion``.
        conditions: what must hold as well, all of it.
    """

    events: tuple[str, ...]
    conditions: tuple[Condition, ...]

    def fires(self, event: str, scope: Scope) -> bool:
        """Tell whether ``event`` (one of ``EVENTS``) takes the handoff."""
        if event not in (self.events or ("completion",)):
            return False
        return all(condition.evaluate(scope) for condition in self.conditions)


def parse_condition(text: str, *, roots: Collection[str] | None = None) -> Condition:
    """Parse a condition.

    Args:
        text: the condition, with or without ``${}`` around its paths.
        roots: the roots that its paths may have; None allows any.

    Raises:
        ExpressionError: it can't be read, is no truth, has an unknown root or passes a limit.
    """
    return _Parser(text, roots, (), "Put text in quotes.").condition()


def parse_trigger(texts: Sequence[str], *, roots: Collection[str] | None = None) -> Trigger:
    """Parse a handoff's ``trigger_conditions``: events and conditions, in any order.

    Args:
        texts: the entries.
        roots: the roots that paths may have; None allows any, for a trigger that was stored when more were.

    Raises:
        ExpressionError: an entry can't be read (its text is the error's), or there are too many.
    """
    if isinstance(texts, str):
        raise ExpressionError('trigger_conditions is a list; write ["completion", "..."]', 0, texts)
    if len(texts) > MAX_TRIGGER_ENTRIES:
        raise ExpressionError(f"more than {MAX_TRIGGER_ENTRIES} trigger conditions; join some with and", 0, "")
    events: list[str] = []
    conditions: list[Condition] = []
    advice = f"Put text in quotes; the events {', '.join(EVENTS)} are entries of their own."
    for text in texts:
        event = text.strip()
        if event not in EVENTS:
            conditions.append(_Parser(text, roots, EVENTS, advice).condition())
        elif event not in events:
            events.append(event)
    return Trigger(tuple(events), tuple(conditions))


def json_equal(left: JsonValue, right: JsonValue) -> bool:
    """Compare deeply: 1 equals 1.0, true does not equal 1, the order of keys does not count."""
    pending: list[tuple[JsonValue, JsonValue]] = [(left, right)]
    while pending:
        one, other = pending.pop()
        if one is other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            if one.keys() != other.keys():
                return False
            pending.extend((value, other[key]) for key, value in one.items())
        elif isinstance(one, list) and isinstance(other, list):
            if len(one) != len(other):
                return False
            pending.extend(zip(one, other, strict=True))
        elif not _equal_scalars(one, other):
            return False
    return True


def _equal_scalars(left: JsonValue, right: JsonValue) -> bool:
    if isinstance(left, str):
        return isinstance(right, str) and left == right
    return _is_number(left) and _is_number(right) and left == right


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _differ(left: JsonValue, right: JsonValue) -> bool:
    return not json_equal(left, right)


def _less(left: JsonValue, right: JsonValue) -> bool:
    if isinstance(left, str):
        return isinstance(right, str) and left < right
    return _is_number(left) and _is_number(right) and left < right


def _less_or_equal(left: JsonValue, right: JsonValue) -> bool:
    if isinstance(left, str):
        return isinstance(right, str) and left <= right
    return _is_number(left) and _is_number(right) and left <= right


def _contains(container: JsonValue, item: JsonValue) -> bool:
    if isinstance(container, list):
        return any(json_equal(item, member) for member in container)
    return isinstance(container, (str, dict)) and isinstance(item, str) and item in container


def _starts_with(text: JsonValue, start: JsonValue) -> bool:
    return isinstance(text, str) and isinstance(start, str) and text.startswith(start)


def _ends_with(text: JsonValue, end: JsonValue) -> bool:
    return isinstance(text, str) and isinstance(end, str) and text.endswith(end)


def _size(value: JsonValue) -> JsonValue:
    return len(value) if isinstance(value, (str, list, dict)) else None


# Longer symbols first: "<=" is not "<" and "=".
_SYMBOL_OPERATORS: Final[dict[str, _Compare]] = {
    "==": json_equal,
    "!=": _differ,
    "<=": _less_or_equal,
    ">=": lambda left, right: _less_or_equal(right, left),
    "=": json_equal,
    "<": _less,
    ">": lambda left, right: _less(right, left),
}
_PAIR_FUNCTIONS: Final[dict[str, _Compare]] = {
    "contains": _contains,
    "startsWith": _starts_with,
    "endsWith": _ends_with,
}
_WORD_OPERATORS: Final[dict[str, _Compare]] = {
    "in": lambda left, right: _contains(right, left),
    **_PAIR_FUNCTIONS,
}
_FUNCTIONS: Final = ("has", "size", *_PAIR_FUNCTIONS)


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A compiled part; a path may turn out to be true, a value such as a number can't."""

    evaluate: _Evaluate
    kind: Literal["truth", "path", "value"]


class _Parser:
    """One parse by recursive descent; each level that an input can open is counted against the depth."""

    def __init__(self, text: str, roots: Collection[str] | None, more_words: Iterable[str], advice: str) -> None:
        known_words = (*more_words, "true", "false", "null")
        self._scanner = Scanner(text, limit=MAX_EXPRESSION_CHARS, roots=roots, known_words=known_words, advice=advice)
        self._paths: dict[tuple[str, str], Path] = {}
        self._nodes = 0
        self._depth = 0

    def condition(self) -> Condition:
        scanner = self._scanner
        start = self._next()
        if scanner.at_end():
            raise scanner.error("the condition is empty; leave it out or write one, such as input.kind = 'a'")
        test = self._test_of(self._either(), start)
        self._next()
        if not scanner.at_end():
            hint = "; write not (a in b)" if scanner.peek_word() == "not" else ""
            raise scanner.error(f"expected an operator or the end, found {scanner.found()}{hint}")
        return Condition(scanner.text, tuple(self._paths.values()), test)

    def _next(self) -> int:
        self._scanner.skip_spaces()
        return self._scanner.position

    def _take(self, word: str, symbol: str) -> bool:
        self._next()
        if self._scanner.take(symbol):
            return True
        return self._scanner.peek_word() == word and self._scanner.take(word)

    def _open(self) -> None:
        self._depth += 1
        if self._depth > MAX_CONDITION_DEPTH:
            raise self._scanner.error(f"nested deeper than {MAX_CONDITION_DEPTH} levels; split the condition")

    def _test_of(self, term: _Term, start: int) -> _Test:
        if term.kind == "value":
            raise self._scanner.error("this is neither true nor false; compare it with something", start)
        evaluate = term.evaluate
        return lambda scope: evaluate(scope) is True

    def _either(self) -> _Term:
        return self._joined(self._both, "or", "||", any)

    def _both(self) -> _Term:
        return self._joined(self._negation, "and", "&&", all)

    def _joined(
        self, operand: Callable[[], _Term], word: str, symbol: str, combine: Callable[[Iterable[bool]], bool]
    ) -> _Term:
        start = self._next()
        first = operand()
        if not self._take(word, symbol):
            return first
        parts = [self._test_of(first, start)]
        while True:
            start = self._next()
            parts.append(self._test_of(operand(), start))
            if not self._take(word, symbol):
                break
        tests = tuple(parts)
        return _Term(lambda scope: combine(test(scope) for test in tests), "truth")

    def _negation(self) -> _Term:
        self._next()
        if self._scanner.peek_word() != "not":
            return self._comparison()
        self._scanner.take("not")
        return self._negated(self._negation)

    def _negated(self, operand: Callable[[], _Term]) -> _Term:
        self._open()
        start = self._next()
        test = self._test_of(operand(), start)
        self._depth -= 1
        return _Term(lambda scope: not test(scope), "truth")

    def _comparison(self) -> _Term:
        left = self._operand()
        compare = self._operator()
        if compare is None:
            return left
        right = self._operand()
        position = self._next()
        if self._operator() is not None:
            message = "comparisons can't be chained; write a < b and b < c, or use parentheses"
            raise self._scanner.error(message, position)
        return _pair(compare, left, right)

    def _operator(self) -> _Compare | None:
        self._next()
        for symbol, compare in _SYMBOL_OPERATORS.items():
            if self._scanner.take(symbol):
                return compare
        word = self._scanner.peek_word()
        if word not in _WORD_OPERATORS:
            return None
        self._scanner.take(word)
        return _WORD_OPERATORS[word]

    def _operand(self) -> _Term:
        scanner = self._scanner
        start = self._next()
        self._nodes += 1
        if self._nodes > MAX_CONDITION_NODES:
            raise scanner.error(f"more than {MAX_CONDITION_NODES} operands; split the condition")
        if scanner.take("!"):
            return self._negated(self._operand)
        if scanner.take("("):
            self._open()
            inner = self._either()
            scanner.expect(")", "or an operator")
            self._depth -= 1
            return inner
        if scanner.take("["):
            return self._list()
        if scanner.take("${"):
            return self._path(scanner.reference())
        char = scanner.peek()
        if char in ("'", '"', "-") or char.isdecimal():
            return _constant(scanner.literal())
        return self._worded(start)

    def _worded(self, start: int) -> _Term:
        scanner = self._scanner
        word = scanner.peek_word()
        if not word:
            raise scanner.error(f"expected a path, a literal or '(', found {scanner.found()}")
        if word in ("null", "true", "false"):
            return _constant(scanner.literal())
        if word in RESERVED_WORDS:
            raise scanner.error(f"expected a path or a literal before {word!r}")
        scanner.position += len(word)
        self._next()
        if scanner.take("("):
            return self._call(word, start)
        scanner.position = start
        return self._path(scanner.path())

    def _list(self) -> _Term:
        self._open()
        items: list[_Evaluate] = []
        self._next()
        while self._scanner.peek() != "]":
            if items:
                self._scanner.expect(",", "or ']' in the list")
            items.append(self._operand().evaluate)
            self._next()
        self._scanner.take("]")
        self._depth -= 1
        members = tuple(items)
        return _Term(lambda scope: [member(scope) for member in members], "value")

    def _call(self, name: str, start: int) -> _Term:
        self._open()
        if name == "has":
            term = self._has()
        elif name == "size":
            value = self._operand().evaluate
            term = _Term(lambda scope: _size(value(scope)), "value")
        elif name in _PAIR_FUNCTIONS:
            left = self._operand()
            self._scanner.expect(",", f"between the two arguments of {name}")
            term = _pair(_PAIR_FUNCTIONS[name], left, self._operand())
        else:
            functions = ", ".join(_FUNCTIONS)
            raise self._scanner.error(f"unknown function {name[:40]!r}; the functions are {functions}", start)
        self._scanner.expect(")", f"to end {name}(...)")
        self._depth -= 1
        return term

    def _has(self) -> _Term:
        start = self._next()
        path = self._scanner.reference() if self._scanner.take("${") else self._scanner.path()
        if path.default is not MISSING:
            raise self._scanner.error("has() takes a path without a default", start)
        self._path(path)
        return _Term(lambda scope: scope.lookup(path) is not MISSING, "truth")

    def _path(self, path: Path) -> _Term:
        self._paths.setdefault((path.text, repr(path.default)), path)

        def read(scope: Scope) -> JsonValue:
            value = read_path(scope, path)
            return None if value is MISSING else value

        return _Term(read, "path")


def _constant(value: JsonValue) -> _Term:
    return _Term(lambda _scope: value, "truth" if isinstance(value, bool) else "value")


def _pair(compare: _Compare, left: _Term, right: _Term) -> _Term:
    first, second = left.evaluate, right.evaluate
    return _Term(lambda scope: compare(first(scope), second(scope)), "truth")
