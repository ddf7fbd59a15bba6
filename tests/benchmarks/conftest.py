"""What all tests of the benchmarks share."""

from collections.abc import Iterator
from typing import Any

import pytest

from sb3_grpo.balancing import BALANCERS
from sb3_grpo.estimators import ESTIMATORS


@pytest.fixture(autouse=True)
def _names_of_the_package() -> Iterator[None]:
    """Runs of the sweeps make further rules and estimators known to the whole process."""
    registries: list[dict[str, Any]] = [BALANCERS, ESTIMATORS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
