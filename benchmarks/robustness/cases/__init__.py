"""Collect all kinds of bad input, by name."""

from benchmarks.robustness.cases import (
    arguments,
    constructor,
    environments,
    group_arguments,
    group_loading,
    group_use,
    loading,
    routers,
    using,
)

SHARED = [*arguments.CASES, *constructor.CASES, *environments.CASES, *loading.CASES, *using.CASES]
OWN = [*group_arguments.CASES, *routers.CASES, *group_loading.CASES, *group_use.CASES]

CASES = {case.name: case for case in (*SHARED, *OWN)}
if len(CASES) != len(SHARED) + len(OWN):
    names = [case.name for case in (*SHARED, *OWN)]
    raise ValueError(f"every case must have a name of its own, got {sorted({n for n in names if names.count(n) > 1})} twice")
