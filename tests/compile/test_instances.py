"""The table of instances: its arithmetic against AWS's per-core figures, and its refusals."""

from __future__ import annotations

import pytest

from compile.instances import GIB, check_runtime, find_instance, known
from nki_kernels.errors import InputError

pytestmark = pytest.mark.null


@pytest.mark.parametrize("name", known())
def test_a_core_has_the_memory_that_aws_states(name: str) -> None:
    """16 GB on trn1 and inf2, 24 GB a logical core on trn2 (NxD Inference feature guide)."""
    instance = find_instance(name)
    assert instance.hbm_per_core == {"trn1": 16, "inf2": 16, "trn2": 24}[instance.target] * GIB
    assert instance.source.startswith("https://") and instance.degrees_source.startswith("https://")
    assert max(instance.degrees) <= instance.cores


@pytest.mark.parametrize(
    ("name", "cores", "degrees"),
    [
        ("trn1.2xlarge", 2, (1, 2)),
        ("trn1.32xlarge", 32, (1, 2, 8, 16, 32)),
        ("inf2.xlarge", 2, (1, 2)),
        ("inf2.24xlarge", 12, (1, 2, 4, 8)),
        ("inf2.48xlarge", 24, (1, 2, 4, 8, 24)),
        ("trn2.48xlarge", 64, (1, 2, 4, 8, 16, 32, 64)),
        ("trn2-ultraserver", 256, (1, 2, 4, 8, 16, 32, 64)),
    ],
)
def test_cores_and_degrees(name: str, cores: int, degrees: tuple[int, ...]) -> None:
    instance = find_instance(name)
    assert (instance.cores, instance.degrees) == (cores, degrees)
    for tp in degrees:
        check_runtime(instance, tp)


def test_refusals_name_what_is_possible() -> None:
    with pytest.raises(InputError, match=r"instance is 'p5'; known: trn1\.2xlarge, "):
        find_instance("p5")
    with pytest.raises(InputError, match=r"tp is 4; trn1\.2xlarge has 2 cores"):
        check_runtime(find_instance("trn1.2xlarge"), 4)
    with pytest.raises(InputError, match=r"supports 1, 2, 8, 16, 32 .*nxd-inference"):
        check_runtime(find_instance("trn1.32xlarge"), 4)
    with pytest.raises(InputError, match="tp is 0"):
        check_runtime(find_instance("trn1.32xlarge"), 0)
