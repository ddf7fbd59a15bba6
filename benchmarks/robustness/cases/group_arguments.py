"""List arguments of the constructor that only GRPO has."""

from typing import Any

from benchmarks.robustness.cases.case import INF, NAN, argument, arguments, function, without_arguments

OWN_ARGUMENTS: dict[str, list[Any]] = dict(
    n_groups=[0, -1, 2.0, "2", NAN, True, [2]],
    max_groups=[0, -1, 4.0, "4", NAN, True, [4]],
    router=["nearest", None, 5, "", ["random"], "One_Hot"],
    router_kwargs=["dict(n_cells=4)", [4], 5],
    group_coef=[-0.1, NAN, INF, "lin", "lin_", "lin_x", "exp_0.1", "lin_-0.1", None, True, [0.1]],
    group_score=["returns", None, True, 1],
    group_scale=["rnage", None, True, 1],
    merge_kl=[-0.1, NAN, INF, "0.1", True, [0.1], 0.3, 0.5],
    split_kl=[-0.1, NAN, INF, "0.3", True, [0.3]],
    regroup_freq=[0, -1, 1.5, "2", NAN, True],
    regroup_warmup=[-1, 1.5, "2", NAN, True],
    probe_kl_coef=[0, -1, NAN, INF, None, "0.05", True],
    compile=["yes", None],
    normalize_advantage=["groups", "task"],
)

LATE_GROUP_COEFS = [None, NAN, "x", -1.0]
CASES = [
    *arguments(OWN_ARGUMENTS, own=True),
    *(argument("group_coef", function(returns), own=True) for returns in LATE_GROUP_COEFS),
    argument("group_coef", without_arguments, own=True),
]
