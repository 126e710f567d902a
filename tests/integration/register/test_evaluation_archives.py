"""Evaluation data that cannot be used are refused with words that help, and nothing in them is executed."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inspecting import LABELS, ROWS, look, only_problem
from registrar_house import MakeData, MakeModel


def bad_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy(array: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"label": LABELS}, "the array of input 'x' (float32 [rows, 4]) is missing; it holds 'label'"),
        ({"x": ROWS}, "answers are missing: give an array 'label', or the outputs' names ('scores')"),
        ({"x": ROWS.astype("f8"), "label": LABELS}, "save array.astype('float32')"),
        ({"x": ROWS[:, :3], "label": LABELS}, "has the shape [40, 3]"),
        ({"x": ROWS[:30], "label": LABELS}, "rows differ: 'x' has 30, 'label' has 40"),
        ({"x": ROWS[:0], "label": LABELS[:0]}, "it holds no rows"),
        ({"x": np.full((40, 4), np.nan, "f4"), "label": LABELS}, "160 values that are not finite"),
        ({"x": ROWS, "label": LABELS + 7}, "classes 7..7, but there are 3 scores"),
        ({"x": ROWS, "label": LABELS + 0.5}, "classes are integers"),
        ({"x": ROWS, "label": np.zeros((40, 3), int)}, "one class index per row"),
        ({"x": ROWS, "label": np.int64(1)}, "single value"),
        ({"x": ROWS, "scores": np.zeros((40, 2), "f4")}, "it must be float32 [rows, 3]"),
    ],
)
def test_evaluation_data_that_do_not_fit_are_refused(
    model_file: MakeModel, data_file: MakeData, arrays: dict[str, Any], words: str
) -> None:
    problem = only_problem(look(model_file(), data_file(**arrays)))
    assert problem.startswith("evaluation data: ")
    assert words in problem


def test_pickled_objects_are_refused_and_never_loaded(model_file: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "eval.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object), label=LABELS)
    assert "pickled Python objects, which are refused" in only_problem(look(model_file(), path))


def test_an_archive_that_unpacks_to_too_much_is_refused_unread(model_file: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "eval.npz"
    np.savez_compressed(path, x=np.zeros((2_000_000, 4), "f4"), label=np.zeros(2_000_000, int))
    assert path.stat().st_size < 200_000
    assert "unpacks to" in only_problem(look(model_file(), path, max_bytes=10_000_000))


def test_an_array_that_claims_more_than_it_holds_is_refused(model_file: MakeModel, tmp_path: Path) -> None:
    whole = npy(ROWS)
    path = bad_archive(tmp_path / "e.npz", {"x.npy": whole.replace(b"(40, 4)", b"(90, 4)"), "label.npy": npy(LABELS)})
    assert "not what its bytes hold" in only_problem(look(model_file(), path))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"../x.npy": npy(ROWS)}, "is no array"),
        ({"x.txt": b"hello"}, "is no array"),
        ({"x.npy": b"hello, I am no array"}, "not in npy format"),
        ({f"a{n}.npy": b"" for n in range(300)}, "300 arrays in it"),
    ],
)
def test_archives_that_are_no_npz_are_refused(
    model_file: MakeModel, tmp_path: Path, members: dict[str, bytes], words: str
) -> None:
    assert words in only_problem(look(model_file(), bad_archive(tmp_path / "e.npz", members)))


def test_a_damaged_archive_is_refused(model_file: MakeModel, data_file: MakeData) -> None:
    path = data_file(x=np.random.default_rng(0).random((40, 4), dtype=np.float32), label=LABELS)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "not a readable npz file" in only_problem(look(model_file(), path))


def test_answers_under_the_outputs_names_are_taken(model_file: MakeModel, data_file: MakeData) -> None:
    assert look(model_file(), data_file(x=ROWS, scores=np.zeros((40, 3), "f4")), metric="mae").problems == ()


def test_few_rows_and_unused_arrays_are_warned_about(model_file: MakeModel, data_file: MakeData) -> None:
    answer = look(model_file(), data_file(x=ROWS[:9], label=LABELS[:9], junk=np.zeros(3)))
    assert answer.problems == ()
    assert any("only 9 rows" in w for w in answer.warnings)
    assert any("'junk'" in w for w in answer.warnings)
