"""Rules of arguments: what a value must be, in words and as a function."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn


class Rule(NamedTuple):
    """What an argument must be, in words and as a function."""

    text: str
    holds: Callable[[Any], bool]


class KeyOf:
    """
    Rule of an argument that names an entry of a dictionary, to which users may add entries of their own.

    :param registry: the dictionary
    :param may_be_none: whether the argument may also be ``None``
    """

    def __init__(self, registry: Mapping[str, Any], may_be_none: bool = False):
        self.registry, self.may_be_none = registry, may_be_none

    @property
    def text(self) -> str:
        """The rule in words."""
        return f"one of {list(self.registry)}" + (", or None" if self.may_be_none else "")

    def holds(self, value: Any) -> bool:
        """
        Return whether the dictionary has such an entry.

        :param value: of the argument
        """
        if value is None:
            return self.may_be_none
        return isinstance(value, str) and value in self.registry


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer, of Python or of NumPy; ``True`` and ``False`` are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, of Python or of NumPy; ``True`` and ``False`` are none, NaN is one."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    return is_number(value) and math.isfinite(value)


def is_numbers(value: Any) -> bool:
    """Return whether a value is a list, a tuple or an array of one dimension, of finite real numbers."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return isinstance(values, (list, tuple)) and all(map(is_finite, values))


def is_range(value: Any) -> bool:
    """Return whether a value is two finite numbers (low, high), the first below the second."""
    return is_numbers(value) and len(value) == 2 and bool(value[0] < value[1])


def is_constant(value: Any) -> bool:
    """Return whether a value is a number that SB3 makes a schedule of; a ``numpy.float32`` is not."""
    return isinstance(value, (float, int)) and not isinstance(value, bool)


def is_flag(value: Any) -> bool:
    """Return whether a value is ``True`` or ``False``, also as the numbers 1 and 0."""
    return isinstance(value, (bool, np.bool_)) or (is_integer(value) and value in (0, 1))


def is_mapping(value: Any) -> bool:
    """Return whether a value is a dict or the like whose keys are strings."""
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


def is_net_arch(value: Any) -> bool:
    """Return whether SB3's ``MlpExtractor`` can be made of it, with every entry used."""
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]  # as it was written for SB3 before 1.8
    if isinstance(value, dict):
        return value.keys() <= {"pi", "vf"} and all(map(is_layers, value.values()))
    return is_layers(value)


def is_layers(value: Any) -> bool:
    """Return whether a value is a list of layer sizes."""
    return isinstance(value, (list, tuple)) and all(is_integer(size) and size >= 1 for size in value)


def makes_layer(value: Any) -> bool:
    """Return whether a value is a class of layers, or a function that returns one; ``torch.relu`` is none."""
    if isinstance(value, type):
        return issubclass(value, nn.Module)
    try:
        return callable(value) and isinstance(value(), nn.Module)
    except TypeError:
        return False


def is_callback(value: Any) -> bool:
    """Return whether ``learn`` can take it as its callback."""
    if isinstance(value, list):
        return all(map(is_callback, value))
    return isinstance(value, BaseCallback) or (callable(value) and not isinstance(value, type))


def is_device(value: Any) -> bool:
    """Return whether torch knows the device; SB3 takes the CPU where there is no GPU."""
    try:
        return value == "auto" or th.device(value) is not None
    except (RuntimeError, TypeError):
        return False


def or_none(rule: Rule) -> Rule:
    """Make the rule of an argument that may also be ``None``."""
    return Rule(f"{rule.text}, or None", lambda value: value is None or rule.holds(value))


def choice(*choices: Any) -> Rule:
    """Make the rule of an argument that is one of ``choices``; 1 is not ``True``."""
    return Rule(
        f"one of {list(choices)}",
        lambda value: any(isinstance(value, type(each)) and value == each for each in choices),
    )


def integer_from(least: int) -> Rule:
    """Make the rule of an integer of at least ``least``."""
    return Rule(f"an integer of at least {least}", lambda value: is_integer(value) and value >= least)


FLAG = Rule("True or False", is_flag)
MAPPING = Rule("a dict whose keys are strings", is_mapping)
FRACTION = Rule("between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1)
NOT_NAN = Rule("a number, not NaN", lambda value: is_number(value) and not math.isnan(value))
FINITE = Rule("a finite number", is_finite)
NOT_NEGATIVE = Rule("finite and at least 0", lambda value: is_number(value) and 0 <= value < math.inf)
POSITIVE = Rule("a number above 0", lambda value: is_number(value) and value > 0)
CLIP_RANGE = Rule(
    "a float or an int above 0, or a function of the remaining progress",
    lambda value: callable(value) or (is_constant(value) and value > 0),
)


def check(name: str, rule: Rule | KeyOf, value: Any) -> None:
    """
    Check one argument.

    :param name: of the argument
    :param rule: what it must be
    :param value: what it is
    :raises ValueError: if the rule does not hold for ``value``
    """
    if not rule.holds(value):
        raise ValueError(f"`{name}` must be {rule.text}, got {value!r}")
