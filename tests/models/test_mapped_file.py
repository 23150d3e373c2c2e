"""Pages of a mapped file: given back, and read again where they are used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from lipstream.models.mapped_file import MappedFile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is mapped")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_pages_are_given_back_and_hold_the_same_when_used_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    numbers = torch.arange(2**23, dtype=torch.float32)
    torch.save({"a": numbers}, path)
    mapped = torch.load(path, mmap=True)["a"]
    assert torch.equal(mapped, numbers)  # all of it is read
    before = resident_bytes()
    MappedFile(path).give_back(mapped)
    assert before - resident_bytes() > 0.9 * numbers.nbytes
    assert torch.equal(mapped, numbers)


def test_memory_that_is_not_the_files_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(4)}, path)
    numbers = torch.ones(2**20)
    MappedFile(path).give_back(numbers)
    assert bool((numbers == 1).all())
