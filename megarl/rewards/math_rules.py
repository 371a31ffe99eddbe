r"""What math-verify accepts and megarl does not. Pure; each rule narrows, none widens.

| ground truth | response | math-verify 0.9 | here | why |
|---|---|---|---|---|
| ABC | CAB | right | wrong | letters are a name, not a product that commutes; products are written a \cdot b |
| 1,2,3 or \{1,2\} | (3,1,2), (2,1) | right | wrong | a tuple is in order; (1,2,3) for the list 1,2,3 is right |
| 10 | 10 or 11 | wrong in a box, right in prose | wrong | two answers; right where the truth holds both |
| 10 | 10\approx 11 | right | wrong | two answers, unless one side is a rounding of the other: \sqrt2\approx1.41 |
| \sqrt2, \pi | 1.414214, 3.141593 | right | wrong | the task wants the number, no count of digits is it |
| 1/3 | 0.333333 | right | right | six digits of a repeating decimal determine the fraction |
| 1/3 | 0.33 | wrong | wrong | |
| 1/2^{99} | 1/2^{98} | right | wrong | both round to 0; exact numbers are compared exactly |
| 0.0000001 | 0.0000002 | right | wrong | likewise: decimals are compared as they are written |
| 10 | 11=10 | right | wrong | a false equation states nothing; x=10, 5+5=10 and 10=10 are right |
| 3 \text{ hours } 20 \text{ minutes} | 3 | right | wrong | only one unit at the end is dropped |
| 50 | 50\%, 0.5 for 50\% | right | right | both readings of a percent sign |
| 10 | 5+5, 20/2 | right | right | equal; where the question is the sum itself, use verifier "gsm8k" |
| c | C | right | right | letters of options; variables that differ in case alone are rare |
| (1,2) | 1,2 | right | right | brackets forgotten, order kept |
"""

from typing import Any

_DIGITS = 60
_ROUNDED_DIGITS = 6
_DEEPEST = 20
# What sympy raises on infinities, undefined values and objects without arithmetic.
_UNDECIDED = (ArithmeticError, AttributeError, NotImplementedError, RecursionError, TypeError, ValueError)


def refuse(gold: Any, answer: Any) -> bool:
    """Whether a pair of sympy objects that math-verify finds equal is not, by the table above. What a rule cannot
    compare is left to math-verify."""
    try:
        return _refuse(gold, answer)
    except _UNDECIDED:
        return False


def is_rounding(exact: Any, rounded: Any, *, written: str) -> bool:
    """Whether `written`, a decimal that parses to `rounded`, is `exact` rounded or cut to its digits."""
    try:
        return _is_rounding(exact, rounded, written=written)
    except _UNDECIDED:
        return False


def _refuse(gold: Any, answer: Any, *, depth: int = 0) -> bool:
    from sympy import And, Eq, FiniteSet, Interval, MatrixBase, Tuple
    from sympy.core.relational import Relational

    if isinstance(gold, str) or isinstance(answer, str) or depth > _DEEPEST:
        return False
    if _is_false_equation(answer):
        return True
    match gold, answer:
        case (Eq() | And(), _) if not isinstance(answer, Relational | And):
            return _refuse(_right_side(gold), answer, depth=depth + 1)
        case (_, Eq() | And()) if not isinstance(gold, Relational | And):
            return _refuse(gold, _right_side(answer), depth=depth + 1)
        case (Eq(), Eq()) if gold.lhs == answer.lhs:
            return _refuse(gold.rhs, answer.rhs, depth=depth + 1)
        case (FiniteSet(), FiniteSet()):
            pairs = zip(_by_value(gold.args), _by_value(answer.args), strict=False)
        case (Tuple() | FiniteSet() | Interval(), Tuple() | FiniteSet() | Interval()):
            return _differ_in_order(_written(gold), _written(answer), depth=depth)
        case (MatrixBase(), MatrixBase()) if gold.shape == answer.shape:
            pairs = zip(gold.flat(), answer.flat(), strict=True)
        case _:
            return _numbers_differ(gold, answer)
    return any(_refuse(one, other, depth=depth + 1) for one, other in pairs)


def _is_rounding(exact: Any, rounded: Any, *, written: str) -> bool:
    if not (_is_real_number(exact) and _is_real_number(rounded)):
        return False
    number = _exact(rounded)
    unit = _last_place(written)
    distance = (_exact(exact) - number).evalf(_DIGITS)
    towards_zero = distance if number.is_nonnegative else -distance
    return bool(-unit / 2 <= distance <= unit / 2) or bool(0 <= towards_zero < unit)


def _last_place(written: str) -> Any:
    """Value of the last digit that a decimal's text gives: 3.14 is 1/100, 1200 is 100."""
    from sympy import Rational

    digits = "".join(sign for sign in written if sign in "0123456789.")
    _, point, decimals = digits.partition(".")
    if point:
        return Rational(1, 10 ** len(decimals))
    return Rational(10 ** (len(digits) - len(digits.rstrip("0"))))


def _is_false_equation(expression: Any) -> bool:
    """An equation between numbers that does not hold, alone or in a chain."""
    from sympy import And, Eq

    match expression:
        case And():
            return any(_is_false_equation(part) for part in expression.args)
        case Eq():
            left, right = expression.lhs, expression.rhs
            return _is_real_number(left) and _is_real_number(right) and not _equal(_exact(left), _exact(right))
        case _:
            return False


def _right_side(expression: Any) -> Any:
    from sympy import And

    parts = getattr(expression, "_unsorted_args", expression.args) if isinstance(expression, And) else (expression,)
    return getattr(parts[-1], "rhs", parts[-1])


def _written(expression: Any) -> tuple[Any, ...]:
    """The elements of a tuple, an open interval read as a pair, or a set, in the order in which they were written."""
    from sympy import Interval

    if isinstance(expression, Interval):
        return expression.start, expression.end
    return tuple(getattr(expression, "_unsorted_args", expression.args))


def _differ_in_order(gold: tuple[Any, ...], answer: tuple[Any, ...], *, depth: int) -> bool:
    if len(gold) != len(answer):
        return True
    return any(
        not _same(one, other) or _refuse(one, other, depth=depth + 1) for one, other in zip(gold, answer, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    from math_verify import verify

    return bool(verify(one, other, timeout_seconds=None))


def _by_value(elements: Any) -> list[Any]:
    """Elements of two equal sets side by side, as math-verify sorts them."""
    from math_verify.grader import sort_key
    from sympy import ordered

    return list(ordered(elements, keys=sort_key, default=False))


def _numbers_differ(gold: Any, answer: Any) -> bool:
    """Real numbers only; other expressions are math-verify's."""
    from sympy import Float, Rational

    if not (_is_real_number(gold) and _is_real_number(answer)) or _has_percent(gold) or _has_percent(answer):
        return False
    gold_exact, answer_exact = _exact(gold), _exact(answer)
    if _equal(gold_exact, answer_exact):
        return False
    gold_decimal, answer_decimal = gold.has(Float), answer.has(Float)
    if gold_decimal == answer_decimal:
        return True
    decimal, exact = (gold, answer_exact) if gold_decimal else (answer, gold_exact)
    if not isinstance(exact.doit(), Rational) and answer_decimal:
        return True
    rounded = decimal.atoms(Float)
    written = _plain_decimal(next(iter(rounded))) if len(rounded) == 1 else ""
    significant = len(written.lstrip("-0.").replace(".", ""))
    return significant < _ROUNDED_DIGITS or not _is_rounding(exact, decimal, written=written)


def _plain_decimal(number: Any) -> str:
    from decimal import Decimal

    return f"{Decimal(str(number)):f}".rstrip("0")


def _has_percent(expression: Any) -> bool:
    from sympy import UnevaluatedExpr

    return bool(expression.has(UnevaluatedExpr))


def _is_real_number(expression: Any) -> bool:
    from sympy import Expr

    return isinstance(expression, Expr) and bool(expression.is_number) and expression.is_extended_real is not False


def _exact(expression: Any) -> Any:
    """Decimals as the fractions that they are written as."""
    from sympy import Float, Rational

    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _equal(one: Any, other: Any) -> bool:
    """Equal to sixty digits, relative to their size."""
    difference = (one - other).evalf(_DIGITS)
    if difference == 0:
        return True
    size = abs(one.evalf(_DIGITS)) + abs(other.evalf(_DIGITS))
    return bool(abs(difference) <= size * 10 ** (5 - _DIGITS))
