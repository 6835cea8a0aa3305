import json
from pathlib import Path

import pytest
from processes import pathfm

from pathfm_cli.cli import doctor
from pathfm_cli.wsi import roi


def test_this_machine_is_fit() -> None:
    done = pathfm("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["failed"] == []
    assert report["checks"]["jpeg2000"]["state"] == "ok"


def test_an_unfit_setting_is_named_and_exits_1(tmp_path: Path) -> None:
    done = pathfm("doctor", env={"PATHFM_DATA": str(tmp_path / "nowhere")})
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "unfit: PATHFM_DATA"


def test_a_missing_region_decoder_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi, "AVAILABLE", False)
    assert doctor._region_decoder().state == "warn"
    monkeypatch.setattr(roi, "AVAILABLE", True)
    assert doctor._region_decoder().state == "ok"


def test_a_look_that_breaks_is_a_finding() -> None:
    def broken() -> str:
        raise OSError("no codec")

    check = doctor._tried("jpeg", broken)
    assert (check.state, check.detail) == ("fail", "OSError: no codec")
