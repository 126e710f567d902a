"""Small real ONNX files and npz files, and a registrar over a real catalogue, store and repository."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from infaas_controller.register.options import RegistrationOptions, Upload
from infaas_controller.register.registrar import Registrar
from onnx import TensorProto, helper, numpy_helper

from infaas.catalog.catalog import Catalog
from infaas.clock import SystemClock
from infaas.control import RegistrationDocument
from infaas.domain.ids import fresh_id
from infaas.repository.local import LocalRepository
from infaas.settings import Settings
from infaas.store.redis import RedisStore

sys.path.insert(0, str(Path(__file__).parent))

from registrar_house import Fleet, House, MakeData, MakeModel, Register


def build_model(
    *,
    scale: float = 1.0,
    dtype: int = TensorProto.FLOAT,
    batch: Sequence[int | str] = ("N", "N"),
    input_name: str = "x",
    outputs: Sequence[str] = ("scores",),
    opset: int = 17,
    ir_version: int = 8,
    extra: Sequence[onnx.NodeProto] = (),
    extra_outputs: Sequence[onnx.ValueInfoProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """scores = x @ W (4 features to 3 classes), and `label`, their ArgMax, when `outputs` names it."""
    weights = np.arange(12, dtype=helper.tensor_dtype_to_np_dtype(dtype)).reshape(4, 3)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [input_name, "W"], ["scores"]),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
            *extra,
        ],
        "g",
        [helper.make_tensor_value_info(input_name, dtype, [batch[0], 4])],
        [
            *(helper.make_tensor_value_info("scores", dtype, [batch[1], 3]) for name in outputs if name == "scores"),
            *(helper.make_tensor_value_info("label", TensorProto.INT64, [batch[1]]) for n in outputs if n == "label"),
            *extra_outputs,
        ],
        [numpy_helper.from_array((weights - 5) * scale, "W")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


@pytest.fixture
def model_file(tmp_path: Path) -> MakeModel:
    def make(name: str = "net.onnx", **options: Any) -> Path:
        path = tmp_path / name
        onnx.save_model(build_model(**options), path)
        return path

    return make


@pytest.fixture
def data_file(tmp_path: Path) -> MakeData:
    """An npz; by default 40 rows of `x` (float32, 4 features) with their labels."""

    def make(name: str = "eval.npz", **arrays: Any) -> Path:
        rng = np.random.default_rng(1)
        if not arrays:
            arrays = {"x": rng.random((40, 4), dtype=np.float32), "label": rng.integers(0, 3, 40)}
        path = tmp_path / name
        np.savez(path, **arrays)
        return path

    return make


@pytest.fixture
async def house(tmp_path: Path, redis_store: RedisStore) -> AsyncIterator[House]:
    settings = Settings(state_dir=tmp_path / "state")
    catalog = Catalog.open(settings.database_url)
    repository = LocalRepository(tmp_path / "artifacts")
    fleet = Fleet()
    registrar = Registrar(catalog, redis_store, repository, fleet, settings, SystemClock())
    yield House(registrar, catalog, redis_store, fleet, settings, repository)
    catalog.close()


@pytest.fixture
def register(house: House, model_file: MakeModel, data_file: MakeData) -> Register:
    async def do(scale: float = 1.0, **options: Any) -> RegistrationDocument:
        # Each upload has files of its own, as each client's has: writing over one that is being read would be another.
        mark = fresh_id("upload")
        upload = Upload(model_file(f"{mark}.onnx", scale=scale), "net.onnx", data_file(f"{mark}.npz"))
        key = options.pop("key", None)
        said = RegistrationOptions(**{"task": "digits", "name": "net", **options})
        return await house.registrar.register(upload, said, idempotency_key=key)

    return do
