"""The real slides, indexed once."""

from pathlib import Path

import pytest

from pathfm_cli.data import cohort, index


@pytest.fixture(scope="session")
def real(slides_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> cohort.Cohort:
    out = tmp_path_factory.mktemp("real") / "s.parquet"
    index.index([str(slides_folder)], out, mpp_overrides=["1.0"])
    return cohort.open_cohort(out)
