"""What all tests of the benchmarks share."""

from collections.abc import Iterator

import pytest

from sb3_grpo.balancing import BALANCERS


@pytest.fixture(autouse=True)
def _rules_of_the_package() -> Iterator[None]:
    """Runs of the sweeps make further rules known to the whole process."""
    before = dict(BALANCERS)
    yield
    BALANCERS.clear()
    BALANCERS.update(before)
