"""The script for those who have a GPU or TPU, rehearsed on a CPU with a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_part_reports_and_one_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accelerator

    def broken(bench: Any) -> Any:
        yield "before", "5 ms", "ok"
        raise NotImplementedError("no such kernel\nand more")

    parts = {"broken": broken, **accelerator.PARTS}
    monkeypatch.setattr(accelerator, "PARTS", parts)
    accelerator.main(["--tiny", "--output", str(tmp_path / "out.json")])
    written = json.loads((tmp_path / "out.json").read_text())
    first, *others = written["parts"]
    assert first["rows"] == [["before", "5 ms", "ok"]]
    assert first["failed"] == "NotImplementedError: no such kernel"
    assert "raise NotImplementedError" in first["traceback"]
    assert [(one["part"], one["failed"]) for one in others] == [(name, None) for name in list(parts)[1:]]
    rows = {what: check for one in others for what, _, check in one["rows"]}
    assert {check for check in rows.values() if check} == {"ok"}
    assert {"logits int8", "16 greedy tokens", "decode, bfloat16, batch 1", "its losses"} <= rows.keys()
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert all(what in shown for what in rows)
    monkeypatch.setattr(accelerator, "LATEST", -1.0)
    assert accelerator.tried("late", broken, written, 0.0)["failed"] == "not begun: the time is up"
