"""Test which splits and merges count as right, and the lines of the table."""

import inspect

import pytest

from benchmarks.sweeps.options import (
    DEFAULTS,
    PARTS,
    SEEDS,
    VALUES,
    is_right_split,
    is_wrong_merge,
    make_runs,
    options_table,
)
from sb3_grpo import GRPO

TYPES = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("groups", "right"),
    [([0, 0, 1, 1], True), ([1, 1, 0, 0], True), ([0, 0, 0, 1], False), ([0, 1, 0, 1], False), ([2, 0, 1, 2], True)],
)
def test_right_split(groups: list[int], right: bool) -> None:
    assert is_right_split([2048, "split", 0, 1, 0.5], groups, TYPES) is right
    assert not is_right_split([2048, "merge", 0, 1, 0.5], groups, TYPES)


@pytest.mark.parametrize(("groups", "wrong"), [([0, 0, 2, 3], False), ([0, 1, 0, 3], True)])
def test_wrong_merge(groups: list[int], wrong: bool) -> None:
    assert is_wrong_merge([2048, "merge", 0, 2, 0.01], groups, TYPES) is wrong
    assert not is_wrong_merge([2048, "split", 0, 2, 0.01], groups, TYPES)


def test_options_are_grpos() -> None:
    keywords = inspect.signature(GRPO.__init__).parameters
    assert set(VALUES) < set(keywords)
    for option, values in VALUES.items():
        assert DEFAULTS[option] not in values


def test_defaults_are_run_once_and_shown_for_each_option() -> None:
    runs = make_runs("recovery", SEEDS)
    assert len(runs) == 6 * len(SEEDS)
    result = dict(ari=1.0, right_split=None, wrong_merges=1, cell_to_group=[0, 0, 1], worst=500.0, mean=500.0)
    table = options_table([{"run": run, "result": result} for run in runs])
    lines = list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    assert [line[:3] for line in lines] == [
        *(("probe_kl_coef", value, "5") for value in ("0.02", "0.05", "0.1", "0.2")),
        *(("regroup_freq", value, "5") for value in ("1", "2", "16")),
    ]
    assert lines[0][3:] == ("5", "never (0 of 5)", "5", "2", "500 [500, 500]", "500 [500, 500]")
    assert set(PARTS["recovery"][2]) == {line[0] for line in lines}
