"""Which operators and scorers a spec may name together; the names are those that the library has."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from growth.operators import OPERATORS
from growth.scorers import SCORERS
from store import spec
from store.spec import GrowthSpec


def test_a_spec_knows_the_operators_and_scorers_of_the_library() -> None:
    assert set(spec.OPERATORS) == set(OPERATORS)
    assert set(spec.SCORERS) == set(SCORERS)
    assert set(spec.NO_GAIN_CLAIMED) == {name for name, operator in OPERATORS.items() if not operator.claims_gain}
    seeing = {name for name, operator in OPERATORS.items() if not operator.uses_scores}
    assert seeing == set(spec.OPERATORS) - {"split", *spec.NO_GAIN_CLAIMED}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"operators": ["magic"]}, "'magic' is none of the operators; choose from split, signed"),
        ({"operators": ["split", "split"]}, "an operator is named twice"),
        ({"operators": []}, "at least 1 item"),
        ({"operators": ["split", "twins"]}, "twins claims no gain, so it can't be ranked among others; name it alone"),
        ({"operators": ["signed"], "scorer": "random"}, "the scorer random ranks by chance"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GrowthSpec.model_validate(given)
