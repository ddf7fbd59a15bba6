"""
Give PPO and GRPO bad input of every kind, and some that only looks bad.

A case builds, trains, loads or asks a model in a few lines; the cases are in ``cases/``. The outcome is found by rule:

- clear: an error of a kind that speaks of input (:data:`INPUT_ERRORS`) whose message holds one of the case's words, by
  default the name of the argument
- obscure: any other error
- silent: no error, although what was given has no sensible meaning; also where weights are NaN afterwards, and where the
  call has not ended after ``TIME_LIMIT`` seconds
- fine: it only looks bad, and works; refused: it only looks bad, and ends in an error
"""

import re
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.table import Table
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.lib.rows import Run
from benchmarks.robustness.cases import CASES
from benchmarks.robustness.cases.case import Algorithm, Case
from benchmarks.robustness.guards import TimeLimitError, limited, silenced
from benchmarks.robustness.models import ALGORITHMS, package_commit
from benchmarks.robustness.records import CODES, Record, select

OUTCOMES = ("clear", "obscure", "silent", "fine", "refused")
TIME_LIMIT = 20.0  # seconds for one case
INPUT_ERRORS = (ValueError, TypeError, AssertionError, RuntimeError, OSError, ImportError, gym.error.Error)


def outcome_of(case: Case, algorithm: Algorithm) -> dict[str, Any]:
    """
    Run a case, and find its outcome by rule.

    :param case: kind of bad input
    :param algorithm: PPO or GRPO
    :return: ``outcome``, ``error`` and its ``message``, both empty without one, and ``where`` the error was raised
    """
    try:
        with limited(TIME_LIMIT), silenced(), tempfile.TemporaryDirectory() as folder:
            result = case.act(algorithm, Path(folder))
    except TimeLimitError:
        return {"outcome": "silent", "error": "", "where": "", "message": f"not over after {TIME_LIMIT:g} seconds"}
    except Exception as error:  # any: this is what is measured
        message = " ".join(str(error).split())
        found = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message, re.IGNORECASE) for word in case.words)
        clear = isinstance(error, INPUT_ERRORS) and found
        outcome = "refused" if case.fine else "clear" if clear else "obscure"
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        return {"outcome": outcome, "error": type(error).__name__, "message": message[:200], "where": module_path(where)}
    if isinstance(result, BaseAlgorithm) and not all(value.isfinite().all() for value in result.policy.parameters()):
        return {"outcome": "silent", "error": "", "where": "", "message": "weights are NaN or infinite"}
    return {"outcome": "silent" if case.fine is False else "fine", "error": "", "where": "", "message": ""}


def module_path(file: str) -> str:
    """
    Return the last two parts of a path, which are the same on every machine.

    :param file: path of a module
    """
    return "/".join(Path(file).parts[-2:])


def try_case(case: str, algorithm: str, code: str) -> dict[str, Any]:
    """
    Run one case.

    :param case: a name of :data:`CASES`
    :param algorithm: ``"PPO"`` or ``"GRPO"``
    :param code: ``"before"`` or ``"after"``, which names the package that is measured
    :return: see :func:`outcome_of`
    """
    return {**outcome_of(CASES[case], ALGORITHMS[algorithm]), "package": package_commit()}


def bad_input_runs(code: str) -> list[Run]:
    """
    Return the runs of all cases, of PPO only where it has them.

    :param code: ``"before"`` or ``"after"``
    """
    both = [dict(case=case.name, algorithm=name, code=code) for case in CASES.values() for name in ALGORITHMS]
    return [run for run in both if run["algorithm"] == "GRPO" or not CASES[run["case"]].own]


def bad_input_table(records: list[Record]) -> Table:
    """
    Return the table of outcomes: the number of kinds of input with each of them.

    :param records: records of this part
    """
    table = Table("kinds", "algorithm", "code", "number", *OUTCOMES, title="Bad input")
    for own in (False, True):
        for algorithm in ALGORITHMS:
            for code in CODES:
                chosen = select(records, algorithm=algorithm, code=code)
                found = Counter(r["outcome"] for r in chosen if r["case"] in CASES and CASES[r["case"]].own == own)
                if found:
                    numbers = (found[name] for name in OUTCOMES)
                    kinds = "only GRPO has" if own else "PPO has too"
                    table.add_row(kinds, algorithm, code, str(found.total()), *map(str, numbers))
    return table


def what_is_left(records: list[Record], code: str) -> Table:
    """
    Return the table of the kinds of input that GRPO does not answer clearly.

    :param records: records of this part
    :param code: ``"before"`` or ``"after"``
    """
    title = f"What GRPO does not answer clearly, {code}"
    table = Table("kind", "GRPO", "PPO", "error", "raised in", title=title)
    ppo = {row["case"]: row["outcome"] for row in select(records, algorithm="PPO", code=code)}
    for row in select(records, algorithm="GRPO", code=code):
        if row["outcome"] in ("obscure", "silent", "refused"):
            message = f"{row['error']}: {row['message']}"[:100] if row["error"] else row["message"]
            table.add_row(row["case"], row["outcome"], ppo.get(row["case"], ""), message, row["where"])
    return table
