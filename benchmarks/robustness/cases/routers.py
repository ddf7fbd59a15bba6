"""List routers, and arguments of routers, that GRPO cannot use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces

from benchmarks.robustness.cases.case import DISCRETE, NAN, Algorithm, Case, dict_tasks, own, tasks, train, without_arguments
from benchmarks.robustness.cases.odd_envs import OddEnv, box


def routed(name: str, router: Callable[..., Any], *words: str, fine: bool | None = False) -> Case:
    """
    Return the case of a function as router, with 4 cells.

    :param name: name of the case after "router function: "
    :param router: function of the observations
    :param words: see :class:`Case`
    :param fine: see :class:`Case`
    """

    def act(algorithm: Algorithm, folder: Path) -> Any:
        return train(algorithm, tasks(), router=router, router_kwargs=dict(n_cells=4))

    return own(f"router function: {name}", act, *(words or ("router", "cells")), fine=fine)


def cells_of(obs: th.Tensor) -> th.Tensor:
    """
    Return the task that each observation shows, shape ``(B,)``.

    :param obs: shape ``(B, 8)``
    """
    return obs[:, 4:].argmax(dim=1)


def changes_observations(obs: th.Tensor) -> th.Tensor:
    """
    Return the task of each observation, and change the observations.

    :param obs: shape ``(B, 8)``
    """
    cells = cells_of(obs)
    obs[:, 0] = 0
    return cells


class Later:
    """
    Router that is right at first.

    :param odd: function of the observations that replaces it after 40 calls
    """

    def __init__(self, odd: Callable[[th.Tensor], Any]):
        self.odd, self.n_calls = odd, 0

    def __call__(self, obs: th.Tensor) -> Any:
        self.n_calls += 1
        return self.odd(obs) if self.n_calls > 40 else cells_of(obs)


def raises(obs: th.Tensor) -> Any:
    """
    Raise an error.

    :param obs: not used
    :raises ValueError: always
    """
    raise ValueError("no cell for this")


ROUTERS = [
    routed("None", lambda obs: None),
    routed("a string", lambda obs: "left"),
    routed("strings", lambda obs: ["left"] * len(obs)),
    routed("floats", lambda obs: cells_of(obs).float()),
    routed("NaN", lambda obs: th.full((len(obs),), NAN)),
    routed("complex numbers", lambda obs: cells_of(obs).to(th.complex64)),
    routed("booleans", lambda obs: cells_of(obs) > 1, fine=None),
    routed("a column", lambda obs: cells_of(obs).unsqueeze(1)),
    routed("a number", lambda obs: 0),
    routed("one too many", lambda obs: th.zeros(len(obs) + 1, dtype=th.long)),
    routed("none at all", lambda obs: th.zeros(0, dtype=th.long)),
    routed("outside", lambda obs: cells_of(obs) + 4),
    routed("negative", lambda obs: cells_of(obs) - 4),
    routed("the observations", lambda obs: obs),
    routed("a dict", lambda obs: {"cells": cells_of(obs)}),
    routed("random", lambda obs: th.randint(4, (len(obs),))),
    routed("changes observations", changes_observations),
    routed("an error", raises, "no cell for this"),
    routed("no argument", without_arguments, "argument", "arguments", "router"),
    routed("later None", Later(lambda obs: None)),
    routed("later outside", Later(lambda obs: cells_of(obs) + 4)),
    routed("later floats", Later(lambda obs: cells_of(obs) + 0.5)),
    routed("later random", Later(lambda obs: th.randint(4, (len(obs),)))),
    routed("a list", lambda obs: cells_of(obs).tolist(), fine=True),
    routed("an array", lambda obs: cells_of(obs).numpy(), fine=True),
    routed("integers of 32 bits", lambda obs: cells_of(obs).int(), fine=True),
]


def router_kwargs_case(
    router: str, kwargs: Any, *words: str, env: Callable[[], Any] = tasks, fine: bool | None = False
) -> Case:
    """
    Return the case of some ``router_kwargs``.

    :param router: name of the router
    :param kwargs: its arguments
    :param words: see :class:`Case`
    :param env: makes the environment
    :param fine: see :class:`Case`
    """
    policy = "MultiInputPolicy" if env is not tasks else "MlpPolicy"
    return own(
        f"router={router!r}, router_kwargs={kwargs!r}",
        lambda a, f: train(a, env(), policy, router=router, router_kwargs=kwargs),
        *words,
        fine=fine,
    )


OTHER_ENTRY = spaces.Dict({"task": spaces.Discrete(3, start=1), "obs": box(2)})
ROUTER_KWARGS = [
    router_kwargs_case("random", dict(cells=3), "cells", "router_kwargs"),
    router_kwargs_case("random", dict(columns=(4, 8)), "columns", "router_kwargs"),
    *(router_kwargs_case("random", dict(n_cells=bad), "n_cells") for bad in (0, -1, 4.0, "4", None, NAN, True)),
    *(
        router_kwargs_case("one_hot", dict(columns=bad), "columns")
        for bad in ((4.0, 8.0), (4,), (8, 4), (4, 9), (4, 4), (-4, 8), "48", 4, None, (3, 7), (0, 4), (4, 6))
    ),
    router_kwargs_case("one_hot", None, "columns"),
    router_kwargs_case("one_hot", dict(columns=(4, 8), hide="no"), "hide"),
    router_kwargs_case("one_hot", dict(columns=(0, 8), hide=True), "hide", "columns"),
    router_kwargs_case("one_hot", dict(columns=[4, 8]), fine=True),
    router_kwargs_case("one_hot", dict(columns=(4, 8)), "Box", env=dict_tasks),
    *(router_kwargs_case("discrete", dict(key=bad), "key", env=dict_tasks) for bad in ("job", "obs", None, 5, ["task"])),
    router_kwargs_case("discrete", None, "key", env=dict_tasks),
    router_kwargs_case("discrete", dict(key="task"), "Dict"),
    own(
        "router='discrete', values from 1",
        lambda a, f: train(a, OddEnv(OTHER_ENTRY), "MultiInputPolicy", **DISCRETE),
        "start",
        "starts",
    ),
    own("router: a function without n_cells", lambda a, f: train(a, tasks(), router=cells_of), "n_cells"),
    own("router: a function of the environment's class", lambda a, f: train(a, tasks(), router=dict), "n_cells", "router"),
]

CASES = [*ROUTER_KWARGS, *ROUTERS]
