"""What right-hand sides share: terms and their sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ctrlnet.dynamics.user_defined import UserDynamics
from ctrlnet.formulas.language import Language, State, StepSize

__all__ = ["Composed", "Dynamics", "PartitionedDynamics", "RightHandSide", "Sum"]

Rate = Callable[[Language, int, State], State]


class RightHandSide(Protocol):
    """Whatever can stand on the right of dY/dt; how it is written is one of two objects, the other is None.

    Attributes
    ----------
    parts
        Fields of the state.
    parameters
        Names of the functions of time that are learned beside coefficients and biases.
    name
        For messages.
    formula
        The right-hand side as a formula of the language, for all schemes but Irksome's.
    form
        The right-hand side as a UFL form, for Irksome's schemes.
    """

    @property
    def parts(self) -> int: ...

    @property
    def parameters(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str: ...

    @property
    def formula(self) -> Dynamics | None: ...

    @property
    def form(self) -> UserDynamics | None: ...


class Dynamics:
    """A right-hand side as a formula on fields: K, its adjoint, the activation, diffusion. It is a sum of terms.

    Attributes
    ----------
    parts
        Fields of the state: 1, or 2 for a system with velocities, which start at zero.
    parameters
        Names of the functions of time that are learned beside coefficients and biases.
    stiff
        Whether a term has a resolvent, for schemes that treat it implicitly.
    halves
        The rates of the two halves of a system that drive each other; None for others.
    step_size
        The symbol h for formulae of steps.
    """

    stiff: bool = False
    step_size = StepSize()
    form: UserDynamics | None = None

    @property
    def parts(self) -> int:
        return 1

    @property
    def parameters(self) -> tuple[str, ...]:
        return ()

    @property
    def halves(self) -> tuple[Rate, Rate] | None:
        return None

    @property
    def formula(self) -> Dynamics:
        return self

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def terms(self) -> tuple[Dynamics, ...]:
        return (self,)

    def fits(self, parts: int) -> bool:
        """Whether it is a term for states of so many parts."""
        return parts == self.parts

    def rate(self, language: Language, stage: int, state: State) -> State:
        """Return dY/dt of a state with the controls of a stage."""
        raise NotImplementedError

    def resolvent(self, language: Language, stage: int, state: State) -> State:
        r"""Return :math:`(I - h A)^{-1} Y` of a stiff term :math:`\dot Y = A Y`."""
        raise NotImplementedError

    def __add__(self, other: Dynamics) -> Sum:
        return Sum((*self.terms, *other.terms))


class Composed(Dynamics):
    """A sum of terms; those that inherit say which."""

    @property
    def terms(self) -> tuple[Dynamics, ...]:
        raise NotImplementedError

    @property
    def parts(self) -> int:
        return max(term.parts for term in self.terms)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for term in self.terms for name in term.parameters)

    def rate(self, language: Language, stage: int, state: State) -> State:
        first, *others = (term.rate(language, stage, state) for term in self.terms)
        return sum(others, first)


@dataclass(frozen=True)
class Sum(Composed):
    r"""The sum of several terms, :math:`\dot Y = f_1(Y) + f_2(Y) + \dots`; made by ``+``.

    Raises
    ------
    ValueError
        If the terms are for states of different parts, or two of them learn a parameter of the same name.
    """

    terms: tuple[Dynamics, ...] = ()

    def __post_init__(self):
        for term in self.terms:
            if not term.fits(self.parts):
                raise ValueError(
                    f"{self.name} is a sum for states of {self.parts} parts, and {term.name} is a term for "
                    f"{term.parts}; add terms for the same states."
                )
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError(
                f"Each learned parameter needs a name of its own, and {self.name} learns {self.parameters}. Let one "
                "term learn, or write a term that names its parameter otherwise."
            )

    @property
    def name(self) -> str:
        return " + ".join(term.name for term in self.terms)


class PartitionedDynamics(Dynamics):
    """A system of two halves, each with a rate that depends on the other half alone."""

    @property
    def halves(self) -> tuple[Rate, Rate]:
        return self.position_rate, self.momentum_rate

    def position_rate(self, language: Language, stage: int, state: State) -> State:
        """Return the rate of the first half; zero for the second."""
        raise NotImplementedError

    def momentum_rate(self, language: Language, stage: int, state: State) -> State:
        """Return the rate of the second half; zero for the first."""
        raise NotImplementedError

    def rate(self, language: Language, stage: int, state: State) -> State:
        return self.position_rate(language, stage, state) + self.momentum_rate(language, stage, state)
