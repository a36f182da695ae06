"""Rules: what they match, what they refuse, and their way through files."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from quadric.adapters.torch import LayerRecipe, Recipe


def test_first_match_wins() -> None:
    recipe = Recipe({"*.0.*": "skip", "*.query": LayerRecipe(bits=8), "*": {"bits": 3}})
    assert recipe.match("layer.0.query") == "skip"
    assert recipe.match("layer.1.query") == LayerRecipe(bits=8)
    assert recipe.match("layer.1.key") == LayerRecipe(bits=3)
    assert Recipe({"a": "skip"}).match("b") is None


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_files_read_back_to_an_equal_recipe(tmp_path: Path, suffix: str) -> None:
    recipe = Recipe(
        {
            "head": "skip",
            'odd "name".*': LayerRecipe(bits="ternary", group_size="tensor", symmetric=True),
            "*.query": LayerRecipe(bits=None, pattern=(2, 4)),
            "*.key": LayerRecipe(bits=4, group_size=64, order="activation", static_groups=False),
            "*": LayerRecipe(bits=3, scale="mse", sparsity=0.5, per_row=True, damping=0.1),
        }
    )
    path = tmp_path / f"recipe{suffix}"
    recipe.save(path)
    assert Recipe.load(path) == recipe
    assert [pattern for pattern, _ in Recipe.load(path)] == [pattern for pattern, _ in recipe]


def test_every_field_survives_a_dict() -> None:
    values: dict[str, Any] = {
        "bits": 3,
        "group_size": 8,
        "symmetric": True,
        "scale": "mse",
        "order": "activation",
        "damping": 0.5,
        "static_groups": False,
        "sparsity": 0.25,
        "per_row": True,
        "method": "round_to_nearest",
    }
    recipe = LayerRecipe.from_dict(values)
    assert set(values) | {"pattern"} == {field.name for field in fields(LayerRecipe)}
    assert recipe.to_dict() == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 5}, "bits"),
        ({"bits": True}, "bits"),
        ({"group_size": 0}, "group_size"),
        ({"group_size": "row"}, "group_size"),
        ({"symmetric": 1}, "symmetric"),
        ({"scale": "max"}, "scale"),
        ({"order": "random"}, "order"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"sparsity": 0.5, "pattern": (2, 4)}, "sparsity and pattern"),
        ({"pattern": "4:2"}, "pattern"),
        ({"pattern": "2 of 4"}, "pattern"),
        ({"pattern": (2, 4), "order": "activation"}, "order"),
        ({"bits": None}, "sparsity or pattern"),
        ({"method": "magic"}, "method"),
        ({"group": 4}, "unknown field 'group'; the fields are bits"),
    ],
)
def test_bad_options_name_the_rule_and_the_field(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as error:
        Recipe({"*.query": options})
    assert str(error.value).startswith("rule '*.query': ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rules", [{"*": "keep"}, {"*": 4}, {}])
def test_bad_rules(rules: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"rule|recipe"):
        Recipe(rules)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("broken.json", "{"),
        ("list.json", "[1]"),
        ("broken.toml", "= 3"),
        ("field.toml", '"*" = {bit = 4}'),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name):
        Recipe.of(path)


def test_of_takes_what_users_have(tmp_path: Path) -> None:
    one = LayerRecipe(bits=3)
    recipe = Recipe({"*": one})
    recipe.save(tmp_path / "r.json")
    for what in (one, recipe, {"*": one}, {"*": {"bits": 3}}, str(tmp_path / "r.json")):
        assert Recipe.of(what) == recipe
    with pytest.raises(TypeError, match=r"recipe must be"):
        Recipe.of(4)


def test_groups_are_static_where_engines_need_it() -> None:
    assert not LayerRecipe().has_static_groups
    assert LayerRecipe(order="activation").has_static_groups
    assert not LayerRecipe(order="activation", static_groups=False).has_static_groups
