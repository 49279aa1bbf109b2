"""The package's public names exist, and importing the package alone loads no torch."""

import subprocess
import sys

import pytest

import growth


@pytest.mark.parametrize("name", growth.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(growth, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        growth.nothing  # noqa: B018


def test_importing_growth_is_light() -> None:
    check = "import growth, sys; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
