"""What the simulator raises and warns about.

Every message names the rule, the operand, its value and the line of the kernel, so that a broken
kernel is stopped by a sentence.
"""

from __future__ import annotations


class SimulatorError(Exception):
    """Base of the errors that concern the simulation as a whole rather than one hardware rule."""


class NkiValidationError(Exception):
    """A documented constraint is broken (the name that ``nki.isa`` exports)."""


class RuleError(NkiValidationError, AssertionError):
    """A kernel breaks one documented rule.

    It is an ``AssertionError`` too, because that is what AWS's own simulator raises for the same
    mistakes (NKI CPU Simulator guide, "Hardware Constraint Validation").

    Attributes:
        rule: the identifier of the rule, as ``python -m nki_sim rules`` lists it.
        source: the public document that states the rule.
        operand: the operand or argument that breaks it.
        value: the offending value, already formatted.
        line: ``file:line`` of the kernel statement.
    """

    def __init__(
        self,
        rule: str,
        text: str,
        source: str,
        operand: str,
        value: str,
        line: str,
        detail: str = "",
    ) -> None:
        self.rule = rule
        self.source = source
        self.operand = operand
        self.value = value
        self.line = line
        extra = f" ({detail})" if detail else ""
        super().__init__(
            f"{line}: {operand} = {value}{extra} breaks rule {rule}: {text} [{source}]"
        )


class DeadlockError(SimulatorError):
    """The cores of one launch wait for each other and none can go on."""


class ShapesOnlyError(SimulatorError):
    """A launch that records shapes only met control flow or an address that depends on data."""


class BindingError(ImportError):
    """The simulator cannot take the name ``nki``, for instance because the real SDK owns it."""


class UnwrittenReadWarning(UserWarning):
    """An instruction reads on-chip or HBM bytes that no instruction has written."""


class AdviceWarning(UserWarning):
    """Legal here, but documented to be fragile on hardware or on other NKI versions."""
