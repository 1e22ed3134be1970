"""Checkpoints: what comes back, what is refused, and what is left alone."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.checkpoint import Checkpoint, discard_state, fingerprint, holds_state
from fxprune.errors import OutputError, ResumeError

KEY = {"recipe": "psp", "seed": 0, "budget": {"flops": 0.5}}
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
values = st.recursive(
    plain, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "below" / "out.partial"


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@given(value=st.dictionaries(st.text(), values))
def test_plain_values_come_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    checkpoint = Checkpoint.open(tmp_path_factory.mktemp("run") / "state", KEY)
    checkpoint.save("choose", value)
    assert checkpoint.load("choose") == value


def test_tensors_come_back_with_dtype_bytes_and_strides(folder: Path) -> None:
    tensors = {
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "mask": torch.tensor([True, False]),
        "complex": torch.randn(2, dtype=torch.complex64),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 5).T,
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    Checkpoint.open(folder, KEY).save("squeeze", {"step": 3, "weights": [tensors]})
    found = Checkpoint.open(folder, KEY).load("squeeze")
    assert found is not None and found["step"] == 3
    for name, tensor in found["weights"][0].items():
        assert torch.equal(tensor, tensors[name]), name
        assert (tensor.dtype, tensor.stride()) == (tensors[name].dtype, tensors[name].stride()), name
        assert not tensor.requires_grad and type(tensor) is Tensor, name


def test_an_optimizer_and_a_generator_go_on_where_they_were(folder: Path) -> None:
    def start() -> tuple[torch.Tensor, torch.optim.Adam, torch.Generator]:
        weight = torch.ones(4, requires_grad=True)
        return weight, torch.optim.Adam([weight], lr=0.1), torch.Generator().manual_seed(0)

    def walk(weight: Tensor, optimizer: torch.optim.Adam, generator: torch.Generator, steps: int) -> None:
        for _ in range(steps):
            weight.grad = torch.randn(4, generator=generator)
            optimizer.step()

    weight, optimizer, generator = start()
    walk(weight, optimizer, generator, 3)
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("s", {"w": weight, "adam": optimizer.state_dict(), "random": generator.get_state()})
    walk(weight, optimizer, generator, 2)

    again, other, random = start()
    found = checkpoint.load("s")
    assert found is not None
    again.data.copy_(found["w"])
    other.load_state_dict(found["adam"])
    random.set_state(found["random"])
    walk(again, other, random, 2)
    assert torch.equal(again, weight)


def test_a_view_does_not_keep_the_whole_tensor(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("s", {"row": torch.zeros(1000, 1000)[3]})
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20_000


def test_the_last_state_of_a_stage_counts_and_stages_are_apart(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    assert checkpoint.load("a") is None
    checkpoint.save("a", {"step": 1})
    checkpoint.save("b", {"step": 7})
    checkpoint.save("a", {"step": 2})
    assert (checkpoint.load("a"), checkpoint.load("b")) == ({"step": 2}, {"step": 7})
    assert names_in(folder) == ["fxprune-run.json", "stage-a.pt", "stage-b.pt"]


def test_no_folder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint.open(None, KEY)
    checkpoint.save("a", {"step": 1})
    assert checkpoint.load("a") is None
    checkpoint.discard()
    assert names_in(tmp_path) == []


def test_nothing_is_written_before_the_first_state(folder: Path) -> None:
    Checkpoint.open(folder, KEY)
    assert not folder.exists() and not holds_state(folder)
    Checkpoint.open(folder, KEY).save("a", {})
    assert holds_state(folder)


def test_another_run_is_refused_with_what_differs(folder: Path) -> None:
    Checkpoint.open(folder, {**KEY, "freeze": ("conv1",), "old": True}).save("a", {})
    Checkpoint.open(folder, {**KEY, "freeze": ["conv1"], "old": True})
    with pytest.raises(ResumeError) as caught:
        Checkpoint.open(folder, {"recipe": "best", "seed": 0, "budget": {"flops": 0.4}, "freeze": "x" * 99})
    assert str(caught.value) == (
        f"{folder} holds the state of another run, with other settings "
        '(recipe: "psp" there, "best" now; budget.flops: 0.5 there, 0.4 now; '
        f'freeze: ["conv1"] there, "{"x" * 39}... now; old: true there, null now): '
        "use the same settings to go on, or delete the folder to start afresh"
    )


def test_a_state_without_what_is_asked_for_is_refused(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("a", {"plan": 1})
    assert checkpoint.load("a", "plan") == {"plan": 1}
    with pytest.raises(ResumeError, match="is damaged and cannot be read"):
        checkpoint.load("a", "plan", "rate")


def test_another_fxprune_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint.open(folder, KEY).save("a", {})
    monkeypatch.setattr("fxprune.checkpoint.VERSION", "9.9")
    with pytest.raises(ResumeError, match='fxprune: ".*" there, "9.9" now'):
        Checkpoint.open(folder, KEY)


def test_another_torch_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint.open(folder, KEY).save("a", {})
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(ResumeError, match='torch: "2.* there, "1.0" now'):
        Checkpoint.open(folder, KEY)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "pickle", "list"])
def test_a_damaged_state_is_refused_and_never_run(folder: Path, damage: str) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("a", {"weights": torch.zeros(1000)})
    path = folder / "stage-a.pt"
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage in ("pickle", "list"):
        torch.save(_Trap(folder / "trap") if damage == "pickle" else [1], path)
    else:
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"truncated": whole[:middle], "flipped": flipped, "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ResumeError, match=f"{path} is damaged and cannot be read: delete the folder {folder} to start"):
        checkpoint.load("a")
    assert not (folder / "trap").exists()


class _Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Trap(tmp_path / "trap")))
    assert (tmp_path / "trap").is_dir()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "key": 3}'])
def test_a_damaged_description_of_the_run_is_refused(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "fxprune-run.json").write_text(text)
    with pytest.raises(ResumeError, match="fxprune-run.json is damaged and cannot be read"):
        Checkpoint.open(folder, KEY)


def test_another_version_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "fxprune-run.json").write_text('{"version": 2, "key": {}}')
    with pytest.raises(ResumeError, match="has version 2; this fxprune reads version 1"):
        Checkpoint.open(folder, KEY)


def test_a_write_that_fails_leaves_the_old_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("a", {"step": 1})

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save("a", {"step": 2})
    assert checkpoint.load("a") == {"step": 1}
    assert names_in(folder) == ["fxprune-run.json", "stage-a.pt"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tmp_path / "file" / "state", KEY)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write to .*state: Not a directory"):
        checkpoint.save("a", {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {2}]}, r"s.a\[1\] is a set, which a checkpoint cannot keep"),
        ({"a": (torch.Generator(),)}, r"s.a\[0\] is a Generator"),
        ({(1,): torch.float32}, r"s.\(1,\) is a dtype"),
    ],
)
def test_values_that_cannot_be_read_back_are_refused(folder: Path, value: dict[Any, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Checkpoint.open(folder, KEY).save("s", value)
    assert not folder.exists()


@pytest.mark.parametrize("stage", ["", "a/b", "../x", "a b"])
def test_names_of_stages_stay_in_the_folder(folder: Path, stage: str) -> None:
    for checkpoint in (Checkpoint.open(folder, KEY), Checkpoint.open(None, KEY)):
        with pytest.raises(ValueError, match="the name of a stage"):
            checkpoint.save(stage, {})


def test_discard_removes_the_folder(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.discard()
    checkpoint.save("a", {"step": 1})
    (folder / ".fxprune-x.tmp").write_text("what a killed process left")
    checkpoint.discard()
    assert not folder.exists() and folder.parent.is_dir()
    checkpoint.save("a", {"step": 2})
    assert checkpoint.load("a") == {"step": 2}
    discard_state(folder)
    discard_state(folder)
    assert not folder.exists()


def test_files_of_others_are_left_alone(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder, KEY)
    checkpoint.save("a", {"step": 1})
    (folder / "notes.txt").write_text("mine")
    for refused in (lambda: discard_state(folder), lambda: Checkpoint.open(folder, KEY)):
        with pytest.raises(ResumeError, match="holds notes.txt, which fxprune did not write: it is left alone"):
            refused()
    assert checkpoint.load("a") == {"step": 1}
    checkpoint.discard()
    assert names_in(folder) == ["notes.txt"]


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "stage-a.pt").write_text("")
    for refused in (discard_state, lambda path: Checkpoint.open(path, KEY)):
        with pytest.raises(ResumeError, match="is a file, not a folder with the state of a run"):
            refused(tmp_path / "file")
        with pytest.raises(ResumeError, match="lacks fxprune-run.json: nothing says which run its state is of"):
            refused(tmp_path / "folder")
    assert (tmp_path / "folder" / "stage-a.pt").exists()


def test_an_empty_folder_is_taken(folder: Path) -> None:
    folder.mkdir(parents=True)
    Checkpoint.open(folder, KEY).save("a", {})
    assert holds_state(folder)


class TestFingerprint:
    def test_it_is_stable(self) -> None:
        tensors = [("w", torch.arange(6.0).reshape(2, 3)), ("b", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))]
        content = b"('w', 'torch.float32', (2, 3))" + struct.pack("<6f", 0, 1, 2, 3, 4, 5)
        content += b"('b', 'torch.bfloat16', (2,))" + bytes.fromhex("c03f00c0")  # the upper halves of 1.5 and -2.0
        expected = hashlib.blake2b(content, digest_size=16).hexdigest()
        assert fingerprint(tensors) == fingerprint(iter(tensors)) == expected

    @pytest.mark.parametrize(
        "other",
        [
            [("v", torch.arange(6.0))],
            [("w", torch.arange(6.0).double())],
            [("w", torch.arange(6.0).reshape(2, 3))],
            [("w", torch.arange(6.0) + torch.tensor([0, 0, 0, 0, 0, 1e-6]))],
            [("w", torch.arange(6.0)), ("w", torch.zeros(0))],
            [("w", torch.arange(6.0).view(torch.int32))],
        ],
        ids=["name", "dtype", "shape", "byte", "number", "bits"],
    )
    def test_everything_counts(self, other: list[tuple[str, Tensor]]) -> None:
        assert fingerprint(other) != fingerprint([("w", torch.arange(6.0))])

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.randn(4, 3).T,
            torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
            torch.randn(8)[::2].half(),
            torch.randn(8)[::2].bfloat16(),
            torch.randn(3, dtype=torch.complex64).conj(),
            torch.tensor([True, False, True])[::2],
            torch.nn.Parameter(torch.randn(3)),
            torch.tensor(3.0),
            torch.zeros(3, 0),
        ],
        ids=["transposed", "channels_last", "half", "bfloat16", "conjugate", "bool", "parameter", "number", "empty"],
    )
    def test_strides_do_not_count(self, tensor: Tensor) -> None:
        plain = tensor.detach().clone(memory_format=torch.contiguous_format).resolve_conj()
        assert fingerprint([("w", tensor)]) == fingerprint([("w", plain)])
        assert fingerprint([("w", tensor)]) != fingerprint([("w", torch.ones_like(plain) * 7)]) or not tensor.numel()
