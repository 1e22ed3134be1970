"""What the accuracy table and the ablation are made with."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fxprune as fp
from benchmarks import ablation, accuracy, accuracy_folding, accuracy_peers, accuracy_plot, accuracy_table
from benchmarks import resnet50_imagenet as resnet50
from benchmarks.accuracy_batch_norm import reestimated
from benchmarks.accuracy_data import NETWORKS, build, calibration, flops, judge, kl
from benchmarks.accuracy_folding import folded, k_means
from benchmarks.accuracy_gradients import gradients
from benchmarks.accuracy_ours import example, passes, run, without
from benchmarks.accuracy_records import append, in_a_process, load, spread, write
from benchmarks.accuracy_retrain import augmented, train
from benchmarks.accuracy_rows import KEY, Task
from fxprune.errors import CalibrationError
from fxprune.passes.base import PLAN, state
from fxprune.passes.choose import Choose


class Small(nn.Module):
    """A residual block and a classifier behind a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_bn = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner_bn(self.inner(x)))))
        return self.head(x.flatten(1))


class Padded(nn.Module):
    """A shortcut that pads channels, as those of the CIFAR-10 ResNets, under their names."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = 4
        self.conv1, self.linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(16, 5)
        self.block = nn.ModuleDict({"conv1": nn.Conv2d(8, 12, 3, padding=1), "conv2": nn.Conv2d(12, 16, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        y = self.block["conv2"](F.relu(self.block["conv1"](x)))
        return self.linear(F.relu(y + F.pad(x, (0, 0, 0, 0, self.extra, self.extra))).mean((2, 3)))


@dataclass(frozen=True)
class Options:
    """Those of the command line that decide what is run."""

    results: Path
    only: tuple[str, ...] = ("cifar10_resnet20",)
    rows: tuple[str, ...] = ("tp-l1", "psp")
    shares: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (0, 1)
    variants: tuple[str, ...] = ("psp", "squeeze")
    resume: bool = True


def task(model: nn.Module, share: float = 0.5, count: int = 32) -> Task:
    return Task("none", model.eval(), torch.randn(count, 3, 4, 4), share, seed=0)


def record(row: str, share: float, top1: float, **more: Any) -> dict[str, Any]:
    fixed = {"network": "cifar10_resnet20", "seed": 0, "kept": share, "seconds": 10.0, "bytes": 2**30, "where": "here"}
    return {**fixed, "row": row, "share": share, "top1": top1, **more}


# ---------------------------------------------------------------- folding


def test_k_means_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = torch.arange(3).repeat(5)
    labels = k_means((centres[truth] + 0.1 * torch.randn(15, 2)).double(), 3, seed=0)
    same = labels[:, None] == labels
    assert torch.equal(same, truth[:, None] == truth)


def test_k_means_leaves_no_cluster_empty_where_points_coincide() -> None:
    labels = k_means(torch.zeros(6, 2).double(), 4, seed=0)
    assert labels.unique().numel() == 4


def test_folding_comes_close_to_the_share_and_not_above() -> None:
    given = task(Small())
    small, _ = folded(given)
    assert 0.4 < flops(small, given.images) / flops(given.model, given.images) <= 0.5
    assert small(given.images).shape == (32, 5)


def test_merging_makes_the_mean_and_reads_the_sum() -> None:
    model = Small().eval().double()
    gm = fp.capture(copy.deepcopy(model), (torch.randn(2, 3, 4, 4, dtype=torch.float64),))
    coupling = fp.analyze(gm)
    group = coupling.by_name["inner.weight"]
    tensors = {**dict(gm.named_parameters()), **dict(gm.named_buffers())}
    accuracy_folding.merge([group.slices(unit) for unit in (2, 5, 7)], tensors)
    chosen = [2, 5, 7]
    torch.testing.assert_close(tensors["inner.weight"][2], model.inner.weight[chosen].mean(0))
    torch.testing.assert_close(tensors["inner_bn.running_var"][2], torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(tensors["outer.weight"][:, 2], model.outer.weight[:, chosen].sum(1))
    torch.testing.assert_close(tensors["outer.weight"][:, 5], model.outer.weight[:, 5])


def test_identical_channels_merge_into_one_that_does_the_same() -> None:
    model = Small().eval().double()
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        model.inner.weight[5] = model.inner.weight[2]
        model.inner.bias[5] = model.inner.bias[2]  # type: ignore[index]
    gm = fp.capture(copy.deepcopy(model), (x,))
    group = fp.analyze(gm).by_name["inner.weight"]
    accuracy_folding.merge([group.slices(2), group.slices(5)], dict(gm.named_parameters()) | dict(gm.named_buffers()))
    small = fp.shrink(gm, fp.Plan({"inner.weight": [unit for unit in range(16) if unit != 5]}))
    torch.testing.assert_close(small(x), model(x))


# ---------------------------------------------------------------- BatchNorm, gradients, retraining


def test_reestimated_statistics_are_those_of_the_images() -> None:
    model, images = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)).eval(), 5 + 2 * torch.randn(128, 3, 4, 4)
    reestimated(model, images)
    norm: Any = model[0]
    torch.testing.assert_close(norm.running_mean, images.mean((0, 2, 3)))
    halves = torch.stack([half.var((0, 2, 3)) for half in images.split(64)])
    torch.testing.assert_close(norm.running_var, halves.mean(0))
    assert norm.momentum == 0.3
    assert not norm.training


def test_gradients_are_means_over_images() -> None:
    head, images = nn.Linear(12, 3), torch.randn(5, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), head)
    found = gradients(model, images, seed=0)
    loss = F.cross_entropy(model(images), model(images).argmax(1))
    torch.testing.assert_close(found.slopes, torch.autograd.grad(loss, list(model.parameters())))
    one = gradients(model, images[:1], seed=0)
    possible = [torch.autograd.grad(F.cross_entropy(model(images[:1]), torch.tensor([k])), head.bias) for k in range(3)]
    assert any(torch.allclose(one.squares[1], gradient.square()) for (gradient,) in possible)
    model.zero_grad()
    found.attach(model, "hessian")
    torch.testing.assert_close(head.weight.grad, found.squares[0])


def test_augmented_images_are_crops_of_the_padded_ones() -> None:
    images = torch.rand(20, 3, 6, 6)
    padded = F.pad(images, [4] * 4)
    for found, whole in zip(augmented(images, torch.Generator().manual_seed(0)), padded, strict=True):
        crops = [whole[:, y : y + 6, x : x + 6] for y in range(9) for x in range(9)]
        assert any(torch.equal(found, crop) or torch.equal(found, crop.flip(2)) for crop in crops)


def test_training_learns_the_labels() -> None:
    images = torch.randn(256, 3, 8, 8)
    images[:, 0] += torch.linspace(-2, 2, 256)[:, None, None]
    labels = (torch.arange(256) > 127).long()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    model.append(nn.Linear(8, 2))
    train(model, images, labels, epochs=8, seed=0)
    assert not model.training
    assert float((model(images).argmax(1) == labels).float().mean()) > 0.85


# ---------------------------------------------------------------- Torch-Pruning


def test_torch_pruning_comes_close_to_the_share_and_not_above() -> None:
    pytest.importorskip("torch_pruning")
    given = task(Small())
    small, notes = accuracy.MAKES["tp-l1"](given)
    share = flops(small, given.images) / flops(given.model, given.images)
    assert 0.4 < share <= 0.5
    assert small(given.images).shape == (32, 5)
    assert notes == {}


def test_torch_pruning_holds_residual_widths_where_shortcuts_pad() -> None:
    pytest.importorskip("torch_pruning")
    small, notes = accuracy.MAKES["tp-l1-bn"](task(Padded()))
    widths = {name: len(weight) for name, weight in small.named_parameters() if name.endswith("weight")}
    assert widths["block.conv1.weight"] < 12
    assert (widths["conv1.weight"], widths["block.conv2.weight"], widths["linear.weight"]) == (8, 16, 5)
    assert "shortcuts that pad channels" in notes["note"]
    assert "no BatchNorm" in notes["note"]


def test_the_best_criterion_is_named() -> None:
    pytest.importorskip("torch_pruning")
    _, notes = accuracy.MAKES["tp-best"](task(Small(), share=0.7, count=16))
    criterion, scope = notes["criterion"].split(", ")
    assert criterion in accuracy_peers.CRITERIA
    assert scope in ("global", "local")


# ---------------------------------------------------------------- fxprune


def test_leaving_out_a_pass_that_is_not_there_is_refused() -> None:
    steps = fp.pipeline("magnitude", budget=fp.Budget(flops=0.5))
    assert [type(step).__name__ for step in without(steps, ["Verify"])] == [
        type(step).__name__ for step in steps if type(step).__name__ != "Verify"
    ]
    with pytest.raises(ValueError, match="the pipeline has no pass Sqeeze"):
        without(steps, ["Verify", "Sqeeze"])


def test_the_passes_of_the_ablation_can_all_be_left_out() -> None:
    given = task(Small())
    names = [name for _, gone in ablation.OFF.values() for name in gone]
    small = run(given, without(passes(given), names))
    assert flops(small, given.images) <= 0.5 * flops(given.model, given.images)
    assert {"psp", *ablation.OFF, "magnitude", "random", "uniform"} <= ablation.VARIANTS.keys()


def test_a_variant_changes_what_choose_is_told_and_nothing_else() -> None:
    given = task(Small())
    steps = fp.pipeline("magnitude", budget=fp.Budget(flops=0.5))
    changed = ablation.choosing(steps, importance="second_order")
    assert changed[1:] == steps[1:]
    first, other = steps[0], changed[0]
    assert isinstance(first, Choose) and isinstance(other, Choose)
    assert (first.importance, other.importance, other.allocation) == ("magnitude", "second_order", "uniform")
    small = run(given, [replace(other, calibration=given.images), *changed[1:]])
    assert flops(small, given.images) <= 0.5 * flops(given.model, given.images)
    assert state(small)[PLAN].kept
    assert example(given)[0].shape == (2, 3, 4, 4)


# ---------------------------------------------------------------- what is run


def test_what_is_known_is_not_run_again(tmp_path: Path) -> None:
    options: Any = Options(tmp_path / "results.jsonl")
    network = "cifar10_resnet20"
    dense, peer = (network, "dense", 1.0, 0), (network, "tp-l1", 0.5, 0)
    first, second = (network, "psp", 0.5, 0), (network, "psp", 0.5, 1)
    assert list(accuracy.runs(options)) == [dense, peer, first, second]
    append(options.results, dict(zip(KEY, first, strict=True)))
    assert list(accuracy.runs(options)) == [dense, peer, second]
    assert list(accuracy.runs(replace(options, resume=False))) == [dense, peer, first, second]


def test_labels_are_needed_for_retraining(tmp_path: Path) -> None:
    options: Any = Options(tmp_path / "none", ("imagenet_mobilenet_v2",), ("retrain",))
    assert [run.row for run in accuracy.runs(options)] == ["dense"]


def test_a_network_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no network matches resnet20; there are: cifar10_resnet20, "):
        accuracy.chosen(["resnet20"])
    assert accuracy.chosen([]) == list(NETWORKS)
    with pytest.raises(SystemExit, match="no network matches nothing"):
        list(ablation.runs(argparse.Namespace(only=["nothing"], resume=False, results=tmp_path)))


def test_the_ablation_runs_every_variant_for_every_draw(tmp_path: Path) -> None:
    options: Any = Options(tmp_path / "none")
    found = [(run.variant, run.share, run.seed) for run in ablation.runs(options)]
    assert found == [("psp", 0.5, 0), ("squeeze", 0.5, 0), ("psp", 0.5, 1), ("squeeze", 0.5, 1)]


def test_a_run_that_fails_gives_nothing() -> None:
    assert in_a_process("benchmarks.there_is_none", []) is None


# ---------------------------------------------------------------- tables and plot


def test_the_newest_result_counts(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    for top1 in (1.0, 2.0):
        append(path, record("psp", 0.5, top1))
    append(path, record("fast", 0.5, 3.0))
    assert [found["top1"] for found in load(path, KEY).values()] == [2.0, 3.0]


def test_spread_is_the_standard_deviation() -> None:
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


def test_texts_go_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- one:begin -->\nold\n<!-- one:end -->\nb\n")
    write(page, "one", "new")
    assert page.read_text() == "a\n<!-- one:begin -->\nnew\n<!-- one:end -->\nb\n"
    with pytest.raises(SystemExit, match="page.md lacks the markers <!-- two:begin --> and <!-- two:end -->"):
        write(page, "two", "new")


def test_accuracy_table_is_stable_text() -> None:
    records = [
        record("dense", 1.0, 91.72),
        record("tp-l1-bn", 0.58, 50.0, kept=0.56, note="widths are held"),
        record("tp-best", 0.58, 60.0, criterion="taylor, local"),
        record("retrained", 0.58, 88.0, epochs=20, seconds=300.0),
        record("psp", 0.58, 90.0),
        record("psp", 0.58, 91.0, seed=1, seconds=20.0),
    ]
    assert "\n".join(accuracy_table.page(records)) == (
        "![Accuracy over the FLOPs that are kept](accuracy.svg)\n"
        "\n"
        "### ResNet-20, CIFAR-10\n"
        "\n"
        "|  | top-1 at 58 % | top-1 at 50 % | top-1 at 40 % | time | peak memory |\n"
        "|---|---|---|---|---|---|\n"
        "| dense | 91.72 | 91.72 | 91.72 |  |  |\n"
        "| Torch-Pruning, L1 + BatchNorm | 50.00 |  |  | 10 s | 1.0 GiB |\n"
        "| Torch-Pruning, best criterion | 60.00 |  |  | 10 s | 1.0 GiB |\n"
        "| Torch-Pruning, L1 + retraining with labels | 88.00 |  |  | 300 s | 1.0 GiB |\n"
        "| **fxprune `psp`** | 90.50 ± 0.71 |  |  | 15 s | 1.0 GiB |\n"
        "\n"
        "- Torch-Pruning: widths are held.\n"
        "- Torch-Pruning, best criterion: 58 %: taylor, local.\n"
        "- Retraining: 20 epochs, 20.0 times as long as `psp`.\n"
        "- Torch-Pruning, L1 + BatchNorm at 58 %: 56.0 % of the FLOPs kept, the nearest it comes.\n"
        "\n"
        "Measured on here, with `python -m benchmarks.accuracy --write`."
    )
    assert list(accuracy_table.short(records))[2] == (
        "| ResNet-20, CIFAR-10 | 58 % | 91.72 | 50.00 |  | **90.50 ± 0.71** | 88.00 | 15 s |"
    )


def test_ablation_table_is_stable_text() -> None:
    tops = {("psp", 0): 90.0, ("psp", 1): 91.0, ("squeeze", 0): 89.0, ("squeeze", 1): 90.5, ("random", 0): 70.0}
    records = [record("none", 0.5, top1, variant=variant, seed=seed) for (variant, seed), top1 in tops.items()]
    assert "\n".join(ablation.table(records)) == (
        "| | ResNet-8, CIFAR-10 | ResNet-20, CIFAR-10 | MobileNetV1 x0.25, ImageNet | difference |\n"
        "|---|---|---|---|---|\n"
        "| all of `psp` (second_order, dynamic; 40 epochs of polish) |  | 90.50 ± 0.71 |  |  |\n"
        "| without phase 1 (Squeeze) |  | 89.75 ± 1.06 |  | -0.75 |\n"
        "| importance: random |  | 70.00 |  | -20.00 |\n"
        "\n"
        "Measured on here, with `python -m benchmarks.ablation --write`."
    )


def test_the_plot_is_the_same_bytes_from_the_same_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    records = [record("dense", 1.0, 91.72), *(record("psp", share, 90 * share) for share in (0.4, 0.5))]
    pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for picture in pictures:
        accuracy_plot.draw(records, picture)
    text = pictures[0].read_text()
    assert pictures[1].read_text() == text
    assert "fxprune psp" in text and "ResNet-20, CIFAR-10" in text
    assert "least squares" not in text and "dc:date" not in text
    assert accuracy_plot.curve(records, "psp") == [(40.0, 36.0, 0.0), (50.0, 45.0, 0.0)]


# ---------------------------------------------------------------- networks and images


def test_draws_are_disjoint_and_the_dense_network_agrees_with_itself(data: Path) -> None:
    network = "cifar10_resnet8_mlperf"
    first, second = (calibration(network, seed) for seed in (0, 1))
    assert first.shape == second.shape == (1024, 3, 32, 32)
    known = {image.numpy().tobytes() for image in first}
    assert not any(image.numpy().tobytes() in known for image in second)
    dense = build(network)
    found = judge(dense, dense, network, limit=100)
    assert found["agreement"] == 100 and found["kl"] == pytest.approx(0, abs=1e-6)
    assert 80 < found["top1"] < 95


def test_flops_and_divergence() -> None:
    model = Small().eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 4, 4))
    assert flops(model, torch.randn(7, 3, 4, 4)) == counter.get_total_flops()
    dense, found = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    p, q = 0.5, torch.softmax(found[0], 0)
    assert float(kl(found, dense)) == pytest.approx(float((p * (torch.tensor([p, p]) / q).log()).sum()))


# ---------------------------------------------------------------- ResNet-50


def test_labels_are_positions_of_class_folders(tmp_path: Path) -> None:
    for name in ("n02/b.JPEG", "n01/a.png", "n02/a.JPEG", "n02/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("L", (30, 20)).save(path)
    found = resnet50.files_of(tmp_path)
    assert [(path.name, label) for path, label in found] == [("a.png", 0), ("a.JPEG", 1), ("b.JPEG", 1)]
    image, label = resnet50.Images(found)[2]
    assert image.shape == (3, 224, 224) and label == 1


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="none is no folder"):
        resnet50.files_of(tmp_path / "none")
    with pytest.raises(SystemExit, match="holds no images"):
        resnet50.files_of(tmp_path)


def test_validation_images_want_class_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n01").mkdir()
    Image.new("L", (30, 20)).save(tmp_path / "n01" / "a.png")
    assert len(resnet50.tested(tmp_path)) == 1 and "has 1 class folders, not 1000" in capsys.readouterr().err
    Image.new("L", (30, 20)).save(tmp_path / "b.png")
    with pytest.raises(SystemExit, match=r"b\.png is in no class folder"):
        resnet50.tested(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "train"], "give --train and --val, or --random"),
        (["--random", "--images", "-5"], "--images: -5 is not above 0"),
        (["--random", "--val-limit", "0"], "--val-limit: 0 is not above 0"),
        (["--random", "--flops", "58"], "--flops: 58 is not above 0 and at most 1"),
        (["--random", "--recipe", "datafree"], "--recipe: invalid choice: 'datafree'"),
        (["--random", "--device", "abacus"], "--device: abacus cannot be used"),
    ],
)
def test_what_the_command_cannot_do_is_refused_at_once(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        resnet50.arguments(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train", "{0}", "--val", "{0}/nowhere"], "nowhere is no folder"),
        (["--train", "{0}", "--val", "{0}/val", "--weights", "{0}/w.pth"], "error: .*w.pth cannot be read as plain"),
        (["--random", "--out", "{0}"], r"error: .* holds \w+(\.\w+)? and no earlier result"),
    ],
)
def test_wrong_files_are_named_before_the_work(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "val" / "n01").mkdir(parents=True)
    Image.new("L", (30, 20)).save(tmp_path / "val" / "n01" / "a.png")
    (tmp_path / "w.pth").write_bytes(b"junk")
    monkeypatch.setattr("sys.argv", ["resnet50_imagenet.py", *(word.format(tmp_path) for word in words)])
    with pytest.raises(SystemExit, match=message):
        resnet50.main()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_decoded_is_named(workers: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    options = resnet50.arguments(["--random", "--workers", str(workers)])
    with pytest.raises(CalibrationError, match=r"a\.png cannot be decoded as an image"):
        list(resnet50.loader(resnet50.files_of(tmp_path), options))


def test_settled_networks_have_the_statistics_of_the_images() -> None:
    model, images = nn.Sequential(nn.BatchNorm2d(3)), 3 + torch.randn(16, 3, 8, 8)
    resnet50.settle(model, images)
    assert not model.training
    assert float(model(images).detach().mean().abs()) < 1e-3
