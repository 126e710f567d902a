"""Files that are made to hurt: each one's bytes, and words that its refusal must hold."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Hostile:
    name: str
    make: Callable[[], bytes]
    words: tuple[str, ...]
    """One of them must be in the refusal: which one depends on what gives out first."""


def _float(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def a_model(nodes: list[Any], constants: list[Any] | None = None, **change: Any) -> bytes:
    """x [N, 4] to scores [N, 3], by `nodes`; nothing is checked here."""
    graph = helper.make_graph(
        nodes,
        "g",
        change.pop("inputs", [_float("x", ["N", 4])]),
        change.pop("outputs", [_float("scores", ["N", 3])]),
        constants or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.functions.extend(change.pop("functions", []))
    model.opset_import.extend(change.pop("imports", []))
    assert not change
    return bytes(model.SerializeToString())


WEIGHTS = numpy_helper.from_array(np.ones((4, 3), np.float32), "W")
MATMUL = helper.make_node("MatMul", ["x", "W"], ["scores"])


def _weights(dims: list[int], data: bytes = b"") -> Any:
    return TensorProto(name="W", dims=dims, data_type=TensorProto.FLOAT, raw_data=data)


def huge_initializer() -> bytes:
    return a_model([MATMUL], [_weights([2**31 - 1, 2**31 - 1])])


def overflowing_initializer() -> bytes:
    return a_model([MATMUL], [_weights([2**62, 4, 2**62], bytes(48))])


def negative_initializer() -> bytes:
    return a_model([MATMUL], [_weights([-4, 3], bytes(48))])


def short_initializer() -> bytes:
    return a_model([MATMUL], [_weights([4, 3], bytes(7))])


def cycle() -> bytes:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    return a_model([*nodes, MATMUL], [WEIGHTS])


def itself() -> bytes:
    return a_model([helper.make_node("Add", ["scores", "scores"], ["scores"])])


def a_million_nodes() -> bytes:
    """By repeating one node's bytes: a list of a million messages would take minutes to make."""
    node = helper.make_node("Identity", ["x"], ["y"]).SerializeToString()
    framed = b"\x0a" + _varint(len(node)) + node
    graph = onnx.ModelProto.FromString(a_model([MATMUL], [WEIGHTS])).graph.SerializeToString()
    body = framed * 1_000_000 + graph
    rest = onnx.ModelProto.FromString(a_model([]))
    rest.ClearField("graph")
    return b"".join((rest.SerializeToString(), b"\x3a", _varint(len(body)), body))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def nested(depth: int) -> Callable[[], bytes]:
    def make() -> bytes:
        inner = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, None)]
        ).SerializeToString()
        # node { op_type: If, attribute { name: then_branch, type: GRAPH, g: <inner> } }, written bottom-up as bytes:
        for _ in range(depth):
            attribute = _field(1, b"then_branch") + _field(6, inner) + b"\xa0\x01\x05"
            node = _field(1, b"flag") + _field(2, b"o") + _field(4, b"If") + _field(5, attribute)
            inner = _field(1, node) + _field(2, b"b")
        rest = onnx.ModelProto.FromString(a_model([]))
        rest.ClearField("graph")
        border = onnx.ModelProto.FromString(a_model([MATMUL], [WEIGHTS])).graph.SerializeToString()
        return bytes(rest.SerializeToString() + _field(7, inner + border))

    return make


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def function_circle() -> bytes:
    functions = [
        helper.make_function(
            "own", name, ["a"], ["b"], [helper.make_node(other, ["a"], ["b"], domain="own")],
            [helper.make_opsetid("own", 1)],
        )
        for name, other in (("F", "G"), ("G", "F"))
    ]  # fmt: skip
    call = helper.make_node("F", ["scores0"], ["scores"], domain="own")
    first = helper.make_node("MatMul", ["x", "W"], ["scores0"])
    return a_model([first, call], [WEIGHTS], functions=functions, imports=[helper.make_opsetid("own", 1)])


def function_avalanche() -> bytes:
    """Ten functions, each ten times the next: 10^10 nodes in two kilobytes."""
    functions = []
    for level in range(10):
        kind = ("Identity", "") if level == 9 else (f"F{level + 1}", "own")
        body = [
            helper.make_node(kind[0], [f"v{n}"], [f"v{n + 1}"], domain=kind[1]) for n in range(10)
        ]  # fmt: skip
        imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
        functions.append(helper.make_function("own", f"F{level}", ["v0"], ["v10"], body, imports))
    first = helper.make_node("MatMul", ["x", "W"], ["scores0"])
    call = helper.make_node("F0", ["scores0"], ["scores"], domain="own")
    return a_model([first, call], [WEIGHTS], functions=functions, imports=[helper.make_opsetid("own", 1)])


def external(location: str) -> Callable[[], bytes]:
    def make() -> bytes:
        weights = TensorProto(name="W", dims=[4, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        weights.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
        return a_model([MATMUL], [weights])

    return make


def external_in_a_constant() -> bytes:
    hidden = TensorProto(name="w", dims=[4, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    hidden.external_data.append(onnx.StringStringEntryProto(key="location", value="/etc/shadow"))
    return a_model([helper.make_node("Constant", [], ["W"], value=hidden), MATMUL])


def memory_bomb() -> bytes:
    """A few bytes that ask for 16 TB when they run."""
    shape = numpy_helper.from_array(np.array([2**21, 2**21], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["x", "W"], ["scores0"]),
        helper.make_node("Add", ["scores0", "sum"], ["scores"]),
    ]
    return a_model(nodes, [WEIGHTS, shape])


def endless_loop() -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"]), helper.make_node("Sin", ["v_in"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            _float("v_in", ["N", 3]),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []), _float("v_out", ["N", 3])],
    )
    constants = [
        WEIGHTS,
        numpy_helper.from_array(np.array(2**62, np.int64), "rounds"),
        numpy_helper.from_array(np.array(True), "go"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["scores0"]),
        helper.make_node("Loop", ["rounds", "go", "scores0"], ["scores"], body=body),
    ]
    return a_model(nodes, constants)


def bad_attribute() -> bytes:
    node = helper.make_node("MatMul", ["x", "W"], ["scores"])
    node.attribute.append(helper.make_attribute("nonsense", 7))
    return a_model([node], [WEIGHTS])


def with_border(inputs: list[Any]) -> Callable[[], bytes]:
    return lambda: a_model([MATMUL], [WEIGHTS], inputs=inputs)


def many_outputs() -> bytes:
    outputs = [_float(f"o{n}", ["N", 3]) for n in range(20_000)]
    nodes = [helper.make_node("Identity", ["scores"], [f"o{n}"]) for n in range(20_000)]
    return a_model([MATMUL, *nodes], [WEIGHTS], outputs=[_float("scores", ["N", 3]), *outputs])


def untyped_output() -> bytes:
    return a_model([MATMUL], [WEIGHTS], outputs=[onnx.ValueInfoProto(name="scores")])


GOOD = a_model([MATMUL], [WEIGHTS])

MODELS = (
    Hostile("an initializer of 2^62 elements", huge_initializer, ("not a valid ONNX graph", "memory", "cannot load")),
    Hostile("an initializer whose size overflows", overflowing_initializer, ("not a valid ONNX graph", "cannot load")),
    Hostile("an initializer of negative size", negative_initializer, ("not a valid ONNX graph", "cannot load")),
    Hostile("an initializer of too few bytes", short_initializer, ("not a valid ONNX graph", "cannot load")),
    Hostile("a cycle", cycle, ("not a valid ONNX graph", "topologically")),
    Hostile("a node that feeds itself", itself, ("not a valid ONNX graph",)),
    Hostile("a million nodes", a_million_nodes, ("1,000,001 nodes or more", "memory", "processor time")),
    Hostile("graphs nested 25 deep", nested(25), ("not a valid ONNX graph", "cannot load")),
    Hostile("graphs nested 5,000 deep", nested(5_000), ("not an ONNX file", "nested too deeply")),
    Hostile("functions in a circle", function_circle, ("call each other in a circle: F -> G -> F",)),
    Hostile("functions that become 10^10 nodes", function_avalanche, ("10,000,000,001 nodes or more",)),
    Hostile("weights in /etc/passwd", external("/etc/passwd"), ("weights in other files",)),
    Hostile("weights above the folder", external("../../../etc/passwd"), ("weights in other files",)),
    Hostile("weights outside, in a constant", external_in_a_constant, ("weights in other files ('/etc/shadow')",)),
    Hostile("a memory bomb", memory_bomb, ("memory", "cannot be run", "cannot load")),
    Hostile("a truncated file", lambda: GOOD[:-9], ("not an ONNX file", "not an ONNX model")),
    Hostile("an attribute that the operator does not have", bad_attribute, ("not a valid ONNX graph",)),
    Hostile("a negative dimension", with_border([_float("x", ["N", -4])]), ("a dimension of -4",)),
    Hostile("a dimension of 2^40", with_border([_float("x", ["N", 2**40])]), ("a dimension of 1099511627776",)),
    Hostile("dimensions that multiply to 2^90", with_border([_float("x", ["N", 2**30, 2**30, 2**30])]),
            ("its fixed dimensions alone",)),
    Hostile("40 dimensions", with_border([_float("x", ["N", *[1] * 40])]), ("has 41 dimensions; at most 16",)),
    Hostile("an empty input name", with_border([_float("x", ["N", 4]), _float("", ["N", 4])]),
            ("must be 1 to 256 printable",)),
    Hostile("an input name of a million characters",
            with_border([_float("x", ["N", 4]), _float("y" * 1_000_000, ["N", 4])]), ("must be 1 to 256 printable",)),
    Hostile("a line break in a name", with_border([_float("x", ["N", 4]), _float("a\nb", ["N", 4])]),
            ("'a\\nb' must be 1 to 256 printable",)),
    Hostile("20,000 outputs", many_outputs, ("20,001 outputs; at most 256",)),
    Hostile("an output of no type", untyped_output, ("undeclared", "not a valid ONNX graph")),
    Hostile("a zip archive", lambda: b"PK\x03\x04" + bytes(100), ("looks like a zip archive",)),
    Hostile("a script", lambda: b"#!/bin/sh\nrm -rf /\n", ("not an ONNX",)),
    Hostile("zeros", lambda: bytes(100_000), ("not an ONNX",)),
)  # fmt: skip


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


ROWS = {"x": np.ones((40, 4), np.float32), "label": np.zeros(40, np.int64)}
GOOD_DATA = npz(**ROWS)


def zipped(members: dict[str, bytes], **how: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def declared(dtype: str, shape: str, data: bytes = b"") -> bytes:
    return npy(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}", data)


def with_x(x: bytes) -> Callable[[], bytes]:
    return lambda: zipped({"x.npy": x, "label.npy": _npy_of(ROWS["label"])})


def _npy_of(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zip_bomb() -> bytes:
    """200 kB that unpack to 200 MB, as their own header says."""
    rows = 200 * 2**20 // 16
    head = declared("'<f4'", f"({rows}, 4)")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        member.write(head)
        for _ in range(200):
            member.write(bytes(2**20))
    return file.getvalue()


def lying_sizes() -> bytes:
    """Its directory says a hundred bytes; what is packed are ten million."""
    data = bytearray(zipped({"x.npy": declared("'<f4'", "(625000, 4)", bytes(10_000_000))}))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 100)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(GOOD_DATA)
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=ROWS["x"], label=np.array([{"a": 1}] * 40, dtype=object))
    return file.getvalue()


def damaged_middle() -> bytes:
    data = bytearray(zipped({"x.npy": _npy_of(np.random.default_rng(1).random((40, 4)).astype(np.float32)),
                             "label.npy": _npy_of(ROWS["label"])}))  # fmt: skip
    data[120:160] = b"\xff" * 40
    return bytes(data)


DATA = (
    Hostile("a zip bomb", zip_bomb, ("unpacks to 209,715",)),
    Hostile("sizes that lie", lying_sizes, ("not what its bytes hold", "not a readable npz", "not in npy format")),
    Hostile("pickled objects", pickled, ("pickled Python objects, which are refused",)),
    Hostile("a path out of the archive", lambda: zipped({"../../x.npy": b"a"}), ("is no array",)),
    Hostile("an absolute path", lambda: zipped({"/etc/x.npy": b"a"}), ("is no array",)),
    Hostile("a name of 60,000 characters", lambda: zipped({"x" * 60_000 + ".npy": b"a"}), ("a name of 60,004",)),
    Hostile("a thousand arrays", lambda: zipped({f"a{n}.npy": b"" for n in range(1000)}), ("1000 arrays in it",)),
    Hostile("cut in half", lambda: GOOD_DATA[: len(GOOD_DATA) // 2], ("not a readable npz file",)),
    Hostile("damaged in the middle", damaged_middle, ("not a readable npz file", "not in npy format")),
    Hostile("no archive at all", lambda: b"\x93NUMPY" + bytes(50), ("not a readable npz file",)),
    Hostile("a header that is code", with_x(npy("__import__('os').system('true')")), ("not in npy format",)),
    Hostile("a header of brackets", with_x(npy("(" * 9000)), ("not in npy format",)),
    Hostile("a header without an end", with_x(b"\x93NUMPY\x01\x00\xff\xff{'descr"), ("not in npy format",)),
    Hostile("a shape of 2^80", with_x(declared("'<f4'", f"({2**40}, {2**40})")), ("not what its bytes hold",)),
    Hostile("a negative shape", with_x(declared("'<f4'", "(-40, -4)", bytes(640))), ("declares the shape [-40, -4]",)),
    Hostile("a dtype that is none", with_x(declared("'<q9'", "(40, 4)")), ("not in npy format",)),
    Hostile("a record dtype", with_x(declared("[('a', '<f4')]", "(40,)", bytes(160))), ("must be float32",)),
    Hostile("labels that are dates", lambda: npz(x=ROWS["x"], label=np.zeros(40, "datetime64[s]")),
            ("must hold numbers or text",)),
    Hostile("values that are not finite", lambda: npz(x=np.full((40, 4), np.nan, np.float32), label=ROWS["label"]),
            ("160 values that are not finite",)),
    Hostile("an encrypted array", encrypted, ("is encrypted",)),
)  # fmt: skip
