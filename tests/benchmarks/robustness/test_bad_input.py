"""Test that outcomes of bad input are found by rule, and that GRPO names bad arguments."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch as th
from stable_baselines3 import PPO

from benchmarks.robustness import bad_input
from benchmarks.robustness.bad_input import outcome_of
from benchmarks.robustness.cases import CASES, SHARED
from benchmarks.robustness.cases.arguments import BAD_ARGUMENTS
from benchmarks.robustness.cases.case import Case, make
from sb3_grpo import GRPO


def raises(error: Exception) -> Any:
    def act(algorithm: Any, folder: Path) -> None:
        raise error

    return act


class TestOutcomes:
    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (ValueError("`n_steps` must be above 0, got 0"), "clear"),
            (AssertionError("N_STEPS must be above 0"), "clear"),
            (ValueError("must be above 0"), "obscure"),
            # another word, of which it is a part
            (ValueError("total_n_steps must be above 0"), "obscure"),
            # from inside, whatever it says
            (AttributeError("no attribute n_steps"), "obscure"),
        ],
    )
    def test_errors(self, error, outcome):
        found = outcome_of(Case("x", raises(error), ("n_steps",)), PPO)
        assert (found["outcome"], found["error"], found["message"]) == (outcome, type(error).__name__, str(error))
        assert found["where"] == "robustness/test_bad_input.py"
        assert outcome_of(Case("x", raises(error), ("n_steps",), fine=True), PPO)["outcome"] == "refused"

    def test_without_an_error(self):
        outcomes = {fine: outcome_of(Case("x", lambda a, f: None, (), fine), PPO)["outcome"] for fine in (True, False, None)}
        assert outcomes == {True: "fine", False: "silent", None: "fine"}

    def test_weights_that_are_nan(self):
        def act(algorithm: Any, folder: Path) -> Any:
            model = make(algorithm)
            next(model.policy.parameters()).data[0] = th.nan
            return model

        assert outcome_of(Case("x", act, (), fine=True), PPO)["outcome"] == "silent"

    def test_without_an_end(self, monkeypatch):
        monkeypatch.setattr(bad_input, "TIME_LIMIT", 0.1)
        assert outcome_of(Case("x", lambda a, f: time.sleep(5), ()), PPO)["outcome"] == "silent"


# those that are refused before anything is built
ARGUMENTS = [
    case
    for case in SHARED
    if case.fine is False and any(case.name.startswith(f"{name}=") for name in BAD_ARGUMENTS) and "later" not in case.name
]


def test_bad_arguments_are_named_by_grpo():
    outcomes = {case.name: outcome_of(case, GRPO) for case in ARGUMENTS}
    assert len(outcomes) > 80
    assert {name: found for name, found in outcomes.items() if found["outcome"] != "clear"} == {}
    # a rule that PPO does not have: the benchmark tells them apart
    assert outcome_of(CASES["max_grad_norm=-0.5"], PPO)["outcome"] == "silent"
    assert outcome_of(CASES["n_epochs='2'"], PPO)["outcome"] == "obscure"


def test_every_case_has_a_name_of_its_own_and_words():
    names = Counter(case.name for case in CASES.values())
    assert max(names.values()) == 1
    assert all(case.words for case in CASES.values() if case.fine is False)
    assert sum(not case.own and case.fine is False for case in CASES.values()) >= 150
    assert sum(case.own and case.fine is False for case in CASES.values()) >= 100
