"""The reader of the TPU compiler's schedules, on a small one written by hand, and the count of cycles."""

import numpy as np
import pytest

from benchmarks.tpu_schedule import causal_tiles, cycles_of_splash
from pallas_kernels._schedule import Region, Schedule, cycles, read, read_all

PLAIN = "%v1 = vadd.f32 %v0, %v0"
PRODUCT = "%v2 = vmatmul.mubr.bf16.gmra.mxu0 %v1"


def skip(region: int) -> str:
    return f"%9 = sbr.rel (%p1) target = $region{region}"


def dump(folder, name="kernel", spill_at=17):
    """A loop over a grid: its body skips a region of two bundles, and one of six with a product of bf16."""
    operations = [
        PLAIN,
        f"{PLAIN} /* Start region 1 */",  # the loop
        skip(9), *[PLAIN] * 4,  # the body, of which the four delay slots always run
        skip(2), *[PLAIN] * 4, PLAIN, PLAIN,
        f"{skip(3)} /* Start region 2 */", *[PLAIN] * 4, PRODUCT, *[PLAIN] * 5,
        f"{PLAIN} /* Start region 3 */",
        f"{PLAIN} /* Start region 9 */",
        skip(1), *[PLAIN] * 4,
        PLAIN,
    ]  # fmt: skip
    lines = [f"{i:#x} : > {{ {text} }}" for i, text in enumerate(operations)]
    (folder / f"123-{name}.4-66-final_bundles.txt").write_text("\n".join(lines))
    use = [f"0 0 {int(i == spill_at)}" for i in range(len(operations))]
    text = "\n".join(["bundles", "MATMUL, VALU, VSTORE:SPILL", "2 4 1", "", *use])
    (folder / f"123-{name}.4-64-final_hlo-static-per-bundle-utilization.txt").write_text(text)


def test_regions_are_found(tmp_path):
    dump(tmp_path, spill_at=21)
    found = read_all(tmp_path, "v5e", "kernel")["kernel"]
    first, second = found.regions
    assert first == Region(2, 0.0, 0)
    assert second == Region(6, 16.0, 1)
    assert found.tiles == [second]
    assert second.cycles == 16
    assert found.overhead == 32 - 1 - 2 - 6 - 1 + 1


def test_a_faster_matrix_unit(tmp_path):
    dump(tmp_path)
    assert read_all(tmp_path, "v6e", "")["kernel"].tiles[0].mxu == 8


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    dump(tmp_path)
    bundles, use = sorted(tmp_path.iterdir(), key=lambda f: "utilization" in f.name)
    use.write_text(use.read_text() + "\n0 0 0")
    with pytest.raises(ValueError, match="bundles, but utilization of"):
        read(bundles, use, "v5e")
    bundles.write_text("0x0 : { nop }")
    use.write_text("a\nb\nc\n\n0")
    with pytest.raises(ValueError, match="no loop over a grid"):
        read(bundles, use, "v5e")


def test_cycles_of_groups():
    """Four tiles in a step: full ones at once, mixed ones by halves."""
    partial, alone = Region(7, 1.0, 0), Region(5, 1.0, 0)
    pair = Region(9, 1.0, 0)
    singles = Region(1, 0.0, 0, (alone, partial), repeats=True)
    halves = Region(2, 0.0, 0, (pair, singles), repeats=True)
    schedule = Schedule(100, (Region(10, 0.0, 0), Region(16, 1.0, 0), Region(3, 0.0, 0, (halves,)), Region(20, 0.0, 0)))
    full = np.full((1, 4), 2)
    assert cycles("fold_scaled_row_by_4", schedule, full) == 100 + 16 + 10 + 20
    mixed = np.array([[2, 2, 1, 0]])
    assert cycles("fold_scaled_row_by_4", schedule, mixed) == 100 + (3 + 2 * 2 + 9 + 2 * 1 + 7) + 30
    assert cycles("fold_col_by_4", schedule, mixed.T) == cycles("fold_row_by_4", schedule, mixed)

    with pytest.raises(ValueError, match="'splash' is no kernel of a pass"):
        cycles("splash", schedule, mixed)


def test_causal_tiles():
    assert causal_tiles(8, 4, 2).tolist() == [[1, 1, 0, 0], [2, 2, 1, 1]]
    assert causal_tiles(8, 2, 4).tolist() == [[1, 0], [1, 0], [2, 1], [2, 1]]


def test_cycles_of_splash():
    schedule = Schedule(100, (Region(10, 0.0, 0), Region(16, 20.0, 0), Region(30, 0.0, 0)))
    assert cycles_of_splash(schedule, visited=3, rows=2) == 3 * 120 + 2 * 40
