"""How channels are added, by name: ours, and those of installed packages (``costs.plugins``)."""

from costs.plugins import extended
from growth.operators.base import Candidates, Evidence, Operator
from growth.operators.firefly import Firefly
from growth.operators.gradmax import GradMax
from growth.operators.signed import Signed
from growth.operators.split import InTwo
from growth.operators.twins import Twins
from growth.operators.zero_output import ZeroOutput

__all__ = ["OPERATORS", "Candidates", "Evidence", "Operator"]

_OWN: dict[str, Operator] = {
    "split": InTwo(),
    "signed": Signed(),
    "twins": Twins(),
    "zero_output": ZeroOutput(),
    "firefly": Firefly(),
    "gradmax": GradMax(),
}
OPERATORS: dict[str, Operator] = extended("operators", _OWN)
