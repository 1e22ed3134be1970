"""What the quantization benchmark measures and writes; its networks are real ones, which may not be here."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim, export

from benchmarks import quantize
from tests.networks import build, images


def record(**more: Any) -> dict[str, Any]:
    each = {"agreement": 90.0, "kl": 0.1}
    forms = {
        "dense": {"top1": 91.0, "bytes": 4 << 20, "milliseconds": 8.0},
        "pruned": {"top1": 90.0, "bytes": 3 << 20, "milliseconds": 5.0},
        "int8": {"top1": 90.5, "bytes": 1 << 20, "milliseconds": 4.0},
        "pruned_int8": {"top1": 89.0, "bytes": 1 << 19, "milliseconds": 2.5},
    }
    run = {"network": "cifar10_resnet20", "recipe": "psp", "share": 0.58, "seed": 0, "batch": 32, "where": "here"}
    return {**run, **{name: each | found for name, found in forms.items()}, **more}


def test_the_page_has_a_line_for_each_form() -> None:
    lines = list(quantize.page([record()]))
    assert lines[2] == "| ResNet-20, CIFAR-10 | dense | 100 % | 91.00 | 90.00 | 4.00 MiB | 8.0 ms | 1.00 |"
    assert lines[3] == "|  | pruned (`psp`) | 58 % | 90.00 | 90.00 | 3.00 MiB | 5.0 ms | 1.60 |"
    assert lines[5] == "|  | **pruned, int8** (`psp`) | 58 % | 89.00 | 90.00 | 0.50 MiB | 2.5 ms | 3.20 |"
    assert lines[-1] == "Measured on here, with `python -m benchmarks.quantize --write`."


def test_without_times_their_columns_are_empty() -> None:
    plain = {"top1": 91.0, "agreement": 100.0, "kl": 0.0, "bytes": 4 << 20}
    line = list(quantize.page([record(**dict.fromkeys(quantize.FORMS, plain))]))[2]
    assert line == "| ResNet-20, CIFAR-10 | dense | 100 % | 91.00 | 100.00 | 4.00 MiB |  |  |"


def test_draws_of_images_are_averaged() -> None:
    lines = list(quantize.page([record(), record(seed=1)]))
    assert len(lines) == 8 and "91.00 ± 0.00" in lines[2]


def test_what_is_quantized_takes_a_quarter_of_the_bytes() -> None:
    program = export(build("Plain"), (images(),), dynamic_shapes=({0: Dim.AUTO},), strict=True)
    dense, small = program.module(check_guards=False), quantize.int8(program, images(16))
    assert isinstance(dense, torch.fx.GraphModule)
    assert quantize.size(dense) == sum(4 * parameter.numel() for parameter in build("Plain").parameters())
    weights = sum(parameter.numel() for parameter in build("Plain").parameters() if parameter.ndim > 1)
    assert weights < quantize.size(small) < 0.5 * quantize.size(dense)
