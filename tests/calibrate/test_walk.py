"""The walk: the same values whether kept in memory, in files or computed again, and nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

from fxprune.calibrate import walk as module
from fxprune.calibrate.contraction import contractions
from fxprune.calibrate.evaluate import Evaluator
from fxprune.calibrate.images import calibration_for
from fxprune.calibrate.walk import Walk
from fxprune.capture import capture
from fxprune.coupling import analyze
from fxprune.passes.shrink import shrink
from tests.networks import NETWORKS, build, images, random_plan


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("growth", [0.0, 1e9], ids=["recomputed", "kept"])
@pytest.mark.parametrize("memory", [0, 1 << 30], ids=["files", "memory"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_stage_sees_the_values_of_both_graphs(
    name: str, memory: int, growth: float, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROWTH", growth)
    monkeypatch.setattr(module, "DISK", 1e-9)  # never worth it for its time
    gm = capture(build(name), (images(),))
    small = shrink(gm, random_plan(analyze(gm), 0))
    calibration = calibration_for(gm, images(6), batch_size=2, held_out=0)
    with torch.no_grad(), Walk(gm, small, calibration, memory) as walk:
        for item in contractions(small).values():
            found = list(walk.stage(item.name, (item.name,), (item.source,)))
            assert len(found) == 3
            for (dense, pruned), (batch,) in zip(found, calibration.batches, strict=True):
                torch.testing.assert_close(dense[item.name], Evaluator(gm)([item.name], {"x": batch})[item.name])
                source = Evaluator(small)([item.source], {"x": batch})[item.source]
                torch.testing.assert_close(pruned[item.source], source)
        if memory == 0 and growth > 1:
            assert any(temporary.glob("fxprune-*"))
    assert not any(temporary.glob("fxprune-*"))


@pytest.mark.parametrize(("disk", "kept"), [(1e-9, False), (1e15, True)])
def test_what_is_stored_sooner_than_computed_is_kept(
    disk: float, kept: bool, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROWTH", 0.0)
    monkeypatch.setattr(module, "DISK", disk)
    gm = capture(build("Residual"), (images(),))
    with torch.no_grad(), Walk(gm, gm, calibration_for(gm, images(6), held_out=0), memory=0) as walk:
        list(walk.stage(next(iter(contractions(gm))), (), ()))
        assert any(temporary.glob("fxprune-*")) == kept


def test_files_go_when_the_walk_is_broken_off(temporary: Path) -> None:
    gm = capture(build("Residual"), (images(),))
    calibration = calibration_for(gm, images(6), batch_size=2, held_out=0)

    def broken_off() -> None:
        with Walk(gm, gm, calibration, memory=0) as walk:
            for name in contractions(gm):
                list(walk.stage(name, (name,), ()))
                if any(temporary.glob("fxprune-*")):
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert not any(temporary.glob("fxprune-*"))


def test_a_changed_weight_is_seen_by_later_stages() -> None:
    gm = capture(build("Plain"), (images(),))
    small = shrink(gm, random_plan(analyze(gm), 0))
    first, second, *_ = contractions(small).values()
    calibration = calibration_for(gm, images(2), batch_size=64)
    with torch.no_grad(), Walk(gm, small, calibration) as walk:
        list(walk.stage(first.name, (), (first.source,)))
        walk.pruned.offsets[first.name] = torch.tensor(100.0)
        ((_, pruned),) = walk.stage(second.name, (), (second.source,))
    expected = Evaluator(small, {first.name: torch.tensor(100.0)})([second.source], {"x": calibration.batches[0][0]})
    torch.testing.assert_close(pruned[second.source], expected[second.source])
