from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.models.parallel.ranks import Pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Four processes of one gloo group."""
    made = Pool(tmp_path_factory.mktemp("ranks"))
    yield made
    made.close()
