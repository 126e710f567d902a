"""Our messages are Triton's on the wire: every field that we declare has the same name, number, type and label."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from infaas.oip.v2 import grpc_service_pb2, model_config_pb2

DESCRIBE = """
import json, sys
from google.protobuf.descriptor import FieldDescriptor

def kind(field):
    if field.message_type is not None:
        return field.message_type.full_name.split(".", PREFIX)[PREFIX]
    if field.enum_type is not None:
        return field.enum_type.full_name.split(".", PREFIX)[PREFIX]
    return field.type

def message(found, descriptor):
    name = descriptor.full_name.split(".", PREFIX)[PREFIX]
    found["messages"][name] = {
        f.name: [f.number, kind(f), f.is_repeated, f.containing_oneof.name if f.containing_oneof else None]
        for f in descriptor.fields
    }
    for nested in descriptor.nested_types:
        message(found, nested)
    for enum in descriptor.enum_types:
        enumeration(found, enum)

def enumeration(found, descriptor):
    found["enums"][descriptor.full_name.split(".", PREFIX)[PREFIX]] = {v.name: v.number for v in descriptor.values}

def describe(modules):
    found = {"messages": {}, "enums": {}, "methods": {}}
    for module in modules:
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            message(found, descriptor)
        for descriptor in module.DESCRIPTOR.enum_types_by_name.values():
            enumeration(found, descriptor)
        for service in module.DESCRIPTOR.services_by_name.values():
            for m in service.methods:
                found["methods"][m.name] = [
                    m.input_type.name, m.output_type.name, m.client_streaming, m.server_streaming
                ]
    return found
"""

THEIRS = """
from tritonclient.grpc import model_config_pb2, service_pb2
print(json.dumps(describe([model_config_pb2, service_pb2])))
"""


def _ours() -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec(DESCRIBE.replace("PREFIX", "3"), scope)
    found: dict[str, Any] = json.loads(json.dumps(scope["describe"]([model_config_pb2, grpc_service_pb2])))
    return found


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    source = DESCRIBE.replace("PREFIX", "1") + THEIRS
    output = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def test_every_message_and_field_that_we_declare_is_theirs(theirs: dict[str, Any]) -> None:
    ours = _ours()
    assert len(ours["messages"]) > 60
    for name, fields in ours["messages"].items():
        for field, described in fields.items():
            assert theirs["messages"][name].get(field) == described, f"{name}.{field}"


def test_messages_of_the_inference_calls_lack_no_field(theirs: dict[str, Any]) -> None:
    ours = _ours()
    for name, fields in ours["messages"].items():
        if not name.startswith(("Model", "Batch")) or name.startswith(("ModelInfer", "ModelStat", "ModelMeta")):
            assert theirs["messages"][name] == fields, name


def test_enums_and_methods_are_theirs(theirs: dict[str, Any]) -> None:
    ours = _ours()
    for name, values in ours["enums"].items():
        assert theirs["enums"][name] == values
    for name, method in ours["methods"].items():
        assert theirs["methods"][name] == method
