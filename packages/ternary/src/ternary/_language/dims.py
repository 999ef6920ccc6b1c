"""Symbolic sizes: integer polynomials with floor division, in one canonical form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Quotient:
    """`numerator // divisor`, not simplifiable."""

    numerator: Dim
    divisor: Dim

    def __str__(self) -> str:
        top = str(self.numerator)
        bottom = str(self.divisor)
        return f"{_wrap(top)} // {_wrap(bottom)}"


MOST_TERMS, MOST_FACTORS, MOST_TEXT, MOST_NUMBER = 200, 64, 2000, 2**63
"""A size beyond these is refused: it takes some lines of source to let products grow without end."""

Atom: TypeAlias = str | Quotient
Monomial: TypeAlias = tuple[Atom, ...]


def _wrap(text: str) -> str:
    return f"({text})" if " " in text else text


@dataclass(frozen=True)
class Dim:
    """A size that may contain symbols; equal sizes in canonical form compare equal.

    Operations raise OverflowError where a result has too many terms or factors, or leaves 64 bits.

    Symbols that start with an uppercase letter are sizes of tensors; others are parameters without a value.
    """

    terms: tuple[tuple[Monomial, int], ...]

    @cached_property
    def constant(self) -> int | None:
        """The value, if there are no symbols."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    def atoms(self) -> set[Atom]:
        """Return every symbol and quotient in it, also inside quotients."""
        found: set[Atom] = set()
        for monomial, _ in self.terms:
            for atom in monomial:
                found.add(atom)
                if isinstance(atom, Quotient):
                    found |= atom.numerator.atoms() | atom.divisor.atoms()
        return found

    @property
    def depends_on_parameters(self) -> bool:
        """Whether a definition's parameter without a value is in it, so that nothing can be decided yet."""
        return any(isinstance(a, str) and not a[0].isupper() for a in self.atoms())

    def __add__(self, other: Dim | int) -> Dim:
        sums = dict(self.terms)
        for monomial, factor in dim(other).terms:
            sums[monomial] = sums.get(monomial, 0) + factor
        return _canonical(sums)

    def __neg__(self) -> Dim:
        return Dim(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Dim | int) -> Dim:
        return self + (-dim(other))

    def __mul__(self, other: Dim | int) -> Dim:
        products: dict[Monomial, int] = {}
        others = dim(other).terms
        if len(self.terms) * len(others) > MOST_TERMS**2:
            raise OverflowError("a size has too many terms")
        for left, a in self.terms:
            for right, b in others:
                if len(left) + len(right) > MOST_FACTORS:
                    raise OverflowError("a size has too many factors")
                monomial = tuple(sorted((*left, *right), key=str))
                products[monomial] = products.get(monomial, 0) + a * b
        return _canonical(products)

    def __floordiv__(self, other: Dim | int) -> Dim:
        divisor = dim(other)
        by = divisor.constant
        if self == divisor:
            return dim(1)
        if by is None:
            exact = _divide_exactly(self, divisor)
            return exact if exact is not None else _divided(self, divisor)
        if by <= 0:
            raise ZeroDivisionError("a size is divided by zero or a negative number")
        whole = {m: c // by for m, c in self.terms}
        rest = _canonical({m: c % by for m, c in self.terms})
        if rest.constant is not None:
            return _canonical(whole)
        return _canonical(whole) + _quotient(rest, by)

    def __mod__(self, other: Dim | int) -> Dim:
        return self - (self // other) * other

    def substitute(self, values: dict[str, Dim]) -> Dim:
        """Replace symbols by sizes."""
        total = dim(0)
        for monomial, factor in self.terms:
            product = dim(factor)
            for atom in monomial:
                if isinstance(atom, Quotient):
                    product = product * (atom.numerator.substitute(values) // atom.divisor.substitute(values))
                else:
                    product = product * values.get(atom, symbol(atom))
            total = total + product
        return total

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        out = ""
        for monomial, factor in sorted(self.terms, key=lambda t: (not t[0], str(t[0]))):
            body = "*".join(_wrap(str(a)) for a in monomial)
            size = abs(factor)
            text = str(size) if not monomial else body if size == 1 else f"{size}*{body}"
            if len(self.terms) == 1 and factor == 1 and len(monomial) == 1:
                text = str(monomial[0])
            sign = "-" if factor < 0 else "+"
            out = f"{out} {sign} {text}" if out else ("-" if factor < 0 else "") + text
        return out


def dim(value: Dim | int) -> Dim:
    """Return a size for a whole number."""
    return value if isinstance(value, Dim) else Dim((((), value),) if value else ())


def symbol(name: str) -> Dim:
    """Return a size that is only known by name."""
    return _atom(name)


def _atom(atom: Atom) -> Dim:
    return Dim((((atom,), 1),))


def _canonical(terms: dict[Monomial, int]) -> Dim:
    kept = [(m, c) for m, c in terms.items() if c]
    if len(kept) > MOST_TERMS or any(abs(c) > MOST_NUMBER for _, c in kept):
        raise OverflowError("a size has too many terms, or leaves 64 bits")
    return Dim(tuple(sorted(kept, key=lambda t: (len(t[0]), [str(a) for a in t[0]]))))


def _quotient(top: Dim, by: int) -> Dim:
    """Floor-divide by a constant, merging nested divisions: (x // m + c) // n == (x + c*m) // (m*n)."""
    if len(top.terms) <= 2:
        constant = 0
        inner: Quotient | None = None
        for monomial, factor in top.terms:
            if not monomial:
                constant = factor
            elif len(monomial) == 1 and isinstance(monomial[0], Quotient) and factor == 1:
                inner = monomial[0]
        if inner is not None and (step := inner.divisor.constant) and len(top.terms) == 1 + (constant != 0):
            return (inner.numerator + constant * step) // (step * by)
    return _divided(top, dim(by))


def _divided(top: Dim, bottom: Dim) -> Dim:
    made = Quotient(top, bottom)
    if len(str(made)) > MOST_TEXT:
        raise OverflowError("a size has too many divisions inside one another")
    return _atom(made)


def _divide_exactly(top: Dim, bottom: Dim) -> Dim | None:
    """Divide by a single product of symbols if every term contains it."""
    if len(bottom.terms) != 1:
        return None
    (monomial, factor) = bottom.terms[0]
    out: dict[Monomial, int] = {}
    for term, count in top.terms:
        left = list(term)
        for atom in monomial:
            if atom not in left:
                return None
            left.remove(atom)
        if count % factor:
            return None
        out[tuple(left)] = count // factor
    return _canonical(out)
