"""Which layers are compressed, and how: ordered rules from a name pattern to options."""

import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from quadric import checks

BITS = (2, 3, 4, 8, "ternary", None)
SKIP: Literal["skip"] = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecipe:
    """How one layer is compressed.

    Attributes
    ----------
    bits : {2, 3, 4, 8, "ternary"} or None
        None only prunes.
    group_size : int, "tensor" or None
        Inputs that share a scale; None is one scale per row, "tensor" one per matrix.
    symmetric : bool
        Zero in the middle of the grid, as the fastest inference kernels want it.
    scale : {"minmax", "mse"}
        How a scale is found; "mse" searches for the range with the smallest error.
    order : {"natural", "activation"}
        Order in which the inputs are swept; "activation" takes the strongest first.
    damping : float
        Added to the diagonal of the Hessian, relative to its mean.
    static_groups : bool or None
        Whether groups are consecutive inputs with scales from the original weights. None is True
        with ``order="activation"``, since most inference engines load no other groups.
    sparsity : float or None
        Fraction of the weights that becomes zero.
    pattern : (int, int), str or None
        Keep n of every m inputs, as ``(2, 4)`` or ``"2:4"``.
    per_row : bool
        Whether `sparsity` holds for each row instead of the whole matrix.
    method : {"sweep", "round_to_nearest"}
        The second is the baseline: each weight on its own (by magnitude where it prunes).

    Raises
    ------
    ValueError, TypeError
        If a value is out of range or two do not go together; the message names the field.

    Examples
    --------
    >>> from quadric.adapters.torch import LayerRecipe
    >>> LayerRecipe(bits=4, group_size=128, pattern="2:4").pattern
    (2, 4)
    """

    bits: int | str | None = 4
    group_size: int | str | None = None
    symmetric: bool = False
    scale: str = "minmax"
    order: str = "natural"
    damping: float = 0.01
    static_groups: bool | None = None
    sparsity: float | None = None
    pattern: tuple[int, int] | str | None = None
    per_row: bool = False
    method: str = "sweep"

    def __post_init__(self) -> None:
        checks.choice(self.bits, "bits", BITS)
        if self.group_size not in (None, "tensor"):
            checks.integer(self.group_size, "group_size", low=1)
        checks.choice(self.scale, "scale", ("minmax", "mse"))
        checks.choice(self.order, "order", ("natural", "activation"))
        checks.choice(self.method, "method", ("sweep", "round_to_nearest"))
        checks.real(self.damping, "damping", low=0)
        for name in ("symmetric", "per_row"):
            checks.choice(getattr(self, name), name, (True, False))
        checks.choice(self.static_groups, "static_groups", (True, False, None))
        object.__setattr__(self, "pattern", _pattern(self.pattern))
        if self.sparsity is not None:
            checks.real(self.sparsity, "sparsity", low=0, high=1)
            if self.pattern is not None:
                raise ValueError("sparsity and pattern must not both be given")
        elif self.pattern is not None and self.order != "natural":
            raise ValueError("order must be 'natural' with pattern, which counts neighbours")
        elif self.bits is None and self.pattern is None:
            raise ValueError("bits must not be None unless sparsity or pattern is given")

    @property
    def has_static_groups(self) -> bool:
        """`static_groups` with None resolved."""
        return self.order == "activation" if self.static_groups is None else self.static_groups

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Build from plain values; "none" stands for None, which TOML lacks."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"unknown field {name!r}; the fields are {', '.join(known)}")
        values: dict[str, Any] = {k: None if v == "none" else v for k, v in options.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from the default, as plain values."""
        result = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                result[field.name] = list(value) if isinstance(value, tuple) else value
        return result


Rule: TypeAlias = LayerRecipe | Literal["skip"]


class Recipe:
    """Ordered rules, name pattern to :class:`LayerRecipe` or "skip"; the first match wins.

    Patterns are those of :mod:`fnmatch` on the layer's full name. A layer that no rule matches is
    left alone. A layer outside the repeated blocks (a head, a pooler) is compressed only by a rule
    that matches no layer inside them, so ``"*"`` does not reach it and ``"lm_head"`` does.

    Parameters
    ----------
    rules : mapping or iterable of pairs
        Pattern to a :class:`LayerRecipe`, a mapping of its fields, or "skip".

    Raises
    ------
    ValueError, TypeError
        If a rule is no such thing; the message names the pattern.

    Examples
    --------
    >>> from quadric.adapters.torch import LayerRecipe, Recipe
    >>> recipe = Recipe({
    ...     "*.attention.*": LayerRecipe(bits=4, group_size=64),
    ...     "*.0.*": "skip",
    ...     "*": {"bits": 3},
    ... })
    >>> recipe.match("layer.0.attention.query").group_size
    64
    >>> recipe.match("layer.0.mlp")
    'skip'
    >>> Recipe.from_dict(recipe.to_dict()) == recipe
    True
    """

    __slots__ = ("rules",)
    rules: tuple[tuple[str, Rule], ...]

    def __init__(self, rules: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        pairs = list(rules.items() if isinstance(rules, Mapping) else rules)
        if not pairs:
            raise ValueError("recipe must have at least one rule")
        self.rules = tuple((str(pattern), _rule(str(pattern), what)) for pattern, what in pairs)

    @classmethod
    def of(cls, what: Any) -> "Recipe":
        """Return a recipe from a recipe, one for all layers, a mapping of rules, or a file."""
        if isinstance(what, Recipe):
            return what
        if isinstance(what, LayerRecipe):
            return cls({"*": what})
        if isinstance(what, Mapping):
            return cls(what)
        if isinstance(what, str | os.PathLike):
            return cls.load(what)
        raise TypeError(
            "recipe must be a Recipe, a LayerRecipe, a mapping of rules or the path of a JSON or "
            f"TOML file, got {type(what).__name__}"
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a .json or .toml file that maps patterns to fields or to "skip".

        Raises
        ------
        ValueError
            If the file cannot be parsed or a rule is wrong; the message names the file.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
            if not isinstance(content, dict):
                raise ValueError(f"must map patterns to fields, got {type(content).__name__}")
            return cls.from_dict(content)
        except (ValueError, TypeError) as error:  # the parsers' errors are ValueErrors too
            raise ValueError(f"recipe {path}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .json or .toml file that :meth:`load` reads back to an equal recipe."""
        path = Path(path)
        rules = self.to_dict()
        if path.suffix == ".toml":
            text = "".join(f"{json.dumps(k)} = {_toml(v)}\n" for k, v in rules.items())
        else:
            text = json.dumps(rules, indent=2) + "\n"
        path.write_text(text, encoding="utf-8")

    @classmethod
    def from_dict(cls, rules: Mapping[str, Any]) -> "Recipe":
        """Build from the form of :meth:`to_dict`."""
        return cls(rules)

    def to_dict(self) -> dict[str, Any]:
        """Return pattern to fields or "skip", in order, as plain values."""
        return {p: what if what == SKIP else what.to_dict() for p, what in self.rules}

    def match(self, name: str, among: Iterable[str] | None = None) -> Rule | None:
        """Return the first rule that matches `name`; `among` limits the patterns looked at."""
        allowed = None if among is None else set(among)
        for pattern, what in self.rules:
            if (allowed is None or pattern in allowed) and fnmatchcase(name, pattern):
                return what
        return None

    def patterns_without(self, names: Iterable[str]) -> list[str]:
        """Return the patterns that match none of `names`."""
        listed = list(names)
        return [p for p, _ in self.rules if not any(fnmatchcase(n, p) for n in listed)]

    def __iter__(self) -> Iterator[tuple[str, Rule]]:
        return iter(self.rules)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)

    def __repr__(self) -> str:
        return f"Recipe({self.to_dict()})"


def _rule(pattern: str, what: Any) -> Rule:
    if isinstance(what, LayerRecipe):
        return what
    if isinstance(what, str) and what == SKIP:
        return SKIP
    if not isinstance(what, Mapping):
        raise TypeError(
            f"rule {pattern!r} must be a LayerRecipe, a mapping of its fields or 'skip', "
            f"got {what!r}"
        )
    try:
        return LayerRecipe.from_dict(what)
    except (ValueError, TypeError) as error:
        raise type(error)(f"rule {pattern!r}: {error}") from None


def _pattern(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value.split(":") if isinstance(value, str) else value
    try:
        keep, out_of = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"pattern must be n:m, such as '2:4', got {value!r}") from None
    if not 0 < keep < out_of:
        raise ValueError(f"pattern must keep n of m with 0 < n < m, got {value!r}")
    return keep, out_of


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(v)}" for key, v in value.items()) + "}"
    return '"none"' if value is None else json.dumps(value)
