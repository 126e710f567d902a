"""Uploads that are made to hurt, to a whole system: refused in words, nothing on the disk, queries go on meanwhile."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from bad_rest import GOOD
from guarded_system import MAX_UPLOAD_BYTES, Guarded, Table
from hostile_files import DATA, GOOD_DATA, MODELS, Hostile
from hostile_files import GOOD as GOOD_MODEL
from raw_callers import RestCaller, Seen, request_bytes, rest
from running_system import wait_for

pytestmark = pytest.mark.long
FOLDERS = ("run", "artifacts", "repository")
MEMORY_SLACK_BYTES = 64 * 2**20


def files_of(guarded: Guarded) -> set[str]:
    """Everything in the state folder that an upload could leave."""
    folder = guarded.system.folder
    kept = {path for name in FOLDERS for path in (folder / name).rglob("*") if (folder / name).exists()}
    return {str(path) for path in kept if path.is_file() and path.suffix != ".json"}


@pytest.fixture(scope="module")
def steady(guarded: Guarded) -> tuple[set[str], int]:
    """The files before the first upload, and the controller's memory after one that warmed it up."""
    before = files_of(guarded)
    register(guarded, GOOD_MODEL[:-9], GOOD_DATA)
    return before, guarded.process("controller").memory_info().rss


def multipart(files: Mapping[str, tuple[str, bytes]], fields: Mapping[str, str]) -> tuple[bytes, str]:
    boundary = secrets.token_hex(8)
    parts = []
    for name, text in fields.items():
        parts.append(f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode())
    for name, (filename, data) in files.items():
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
        parts.append(head.encode("utf-8") + data + b"\r\n")
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def register(guarded: Guarded, model: bytes, data: bytes, filename: str = "net.onnx", **fields: str) -> Seen:
    said = {"task": "hostile", "name": "hostile-net", **fields}
    body, kind = multipart({"file": (filename, model), "eval": ("eval.npz", data)}, said)
    return rest(guarded.port, request_bytes("POST", "/v1/models", body, {"content-type": kind}))


@pytest.mark.parametrize("hostile", MODELS, ids=lambda hostile: hostile.name)
def test_a_hostile_model_is_400_and_leaves_nothing(
    guarded: Guarded, table: Table, steady: tuple[set[str], int], hostile: Hostile
) -> None:
    check(guarded, table, steady, hostile, register(guarded, hostile.make(), GOOD_DATA))


@pytest.mark.parametrize("hostile", DATA, ids=lambda hostile: hostile.name)
def test_a_hostile_data_file_is_400_and_leaves_nothing(
    guarded: Guarded, table: Table, steady: tuple[set[str], int], hostile: Hostile
) -> None:
    check(guarded, table, steady, hostile, register(guarded, GOOD_MODEL, hostile.make()))


def check(guarded: Guarded, table: Table, steady: tuple[set[str], int], hostile: Hostile, seen: Seen) -> None:
    table.note("upload", hostile.name, seen)
    assert (seen.status, seen.code) == ("400", "invalid-argument"), seen
    said = [seen.text, *json.loads(seen.body).get("problems", [])]
    assert any(words in text for words in hostile.words for text in said), said
    assert len(seen.body) < 120_000
    files, memory = steady
    assert files_of(guarded) == files
    assert guarded.process("controller").memory_info().rss - memory < MEMORY_SLACK_BYTES
    guarded.assert_nothing_is_held()


@pytest.mark.parametrize(
    ("filename", "words"),
    [("../../etc/passwd.onnx", "is a path"), ("a b.onnx", "must match"), ("\0.onnx", ""), ("é" * 500, "must match")],
)
def test_a_file_name_that_is_a_trick_is_400(
    guarded: Guarded, steady: tuple[set[str], int], filename: str, words: str
) -> None:
    body, kind = multipart({"file": (filename, GOOD_MODEL), "eval": ("e.npz", GOOD_DATA)}, {"task": "hostile"})
    seen = rest(guarded.port, request_bytes("POST", "/v1/models", body, {"content-type": kind}))
    assert (seen.status, seen.code) == ("400", "invalid-argument"), seen
    assert words in seen.text
    assert files_of(guarded) == steady[0]


def test_an_upload_past_the_limit_is_413_and_leaves_nothing(
    guarded: Guarded, table: Table, steady: tuple[set[str], int]
) -> None:
    kind = "multipart/form-data; boundary=b"
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="m.onnx"\r\n\r\n'
    piece = bytes(2**20)
    frames = [b"%x\r\n%s\r\n" % (len(data), data) for data in (head, *[piece] * (MAX_UPLOAD_BYTES // 2**20 + 8))]
    chunked = {"content-type": kind, "transfer-encoding": "chunked"}
    seen = rest(guarded.port, request_bytes("POST", "/v1/models", headers=chunked, has_length=False), *frames)
    table.note("upload", "past the limit, by chunks", seen)
    assert (seen.status, seen.code) == ("413", "too-large")
    announced = {"content-type": kind, "content-length": str(2**40)}
    seen = rest(guarded.port, request_bytes("POST", "/v1/models", headers=announced, has_length=False), head)
    table.note("upload", "1 TB announced", seen)
    assert (seen.status, seen.code) == ("413", "too-large")
    wait_for(lambda: files_of(guarded) == steady[0], "the refused files to go")


@pytest.mark.parametrize("cut", [0.2, 0.9])
def test_a_caller_that_leaves_in_the_middle_of_an_upload_leaves_nothing(
    guarded: Guarded, steady: tuple[set[str], int], cut: float
) -> None:
    body, kind = multipart({"file": ("m.onnx", bytes(8 * 2**20))}, {"task": "hostile"})
    request = request_bytes("POST", "/v1/models", body, {"content-type": kind})
    with RestCaller(guarded.port) as caller:
        caller.send(request[: int(len(request) * cut)])
        wait_for(lambda: files_of(guarded) != steady[0], "the upload to have begun")
    wait_for(lambda: files_of(guarded) == steady[0], "what came of the upload to go")


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "multipart/form-data; boundary=b", "ends before its closing boundary"),
        (b"--b\r\n", "multipart/form-data; boundary=b", "ends before its closing boundary"),
        (b"--c\r\n\r\n", "multipart/form-data; boundary=b", "malformed"),
        (b"{}", "application/json", "multipart/form-data with a boundary"),
        (b"{}", "multipart/form-data", "multipart/form-data with a boundary"),
        (b'--b\r\ncontent-disposition: form-data; name="evil"\r\n\r\nx\r\n--b--\r\n', "multipart/form-data; boundary=b",
         "unknown field 'evil'"),
        (b"--b\r\n" + b"x" * 100_000, "multipart/form-data; boundary=b", ""),
        (b"--b\r\nx: " + b"x" * 1_000_000, "multipart/form-data; boundary=b", ""),
        (b'--b\r\ncontent-disposition: form-data; name="task"\r\n\r\nx\r\n' * 400,
         "multipart/form-data; boundary=b", ""),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_400(
    guarded: Guarded, table: Table, steady: tuple[set[str], int], body: bytes, kind: str, words: str
) -> None:
    seen = rest(guarded.port, request_bytes("POST", "/v1/models", body, {"content-type": kind}))
    table.note("upload", f"a form of {body[:20]!r}", seen)
    assert (seen.status, seen.code) == ("400", "invalid-argument"), seen
    assert words in seen.text
    assert files_of(guarded) == steady[0]


def test_queries_are_answered_while_hostile_files_are_checked(guarded: Guarded, tmp_path: Path) -> None:
    million = next(hostile for hostile in MODELS if hostile.name == "a million nodes").make()
    seen: list[Seen] = []
    upload = threading.Thread(target=lambda: seen.append(register(guarded, million, GOOD_DATA)), name="upload")
    upload.start()
    answers = []
    with RestCaller(guarded.port) as caller:
        while upload.is_alive():
            caller.send(GOOD)
            answers.append(caller.answer().status)
    upload.join()
    assert [one.status for one in seen] == ["400"]
    assert set(answers) == {"200"}
