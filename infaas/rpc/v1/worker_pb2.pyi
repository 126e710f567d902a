from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ControllerMessage(_message.Message):
    __slots__ = ("hello", "batch", "cancel", "load", "unload", "shared_memory", "wishes")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    UNLOAD_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    WISHES_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    batch: Batch
    cancel: CancelQueries
    load: LoadInstance
    unload: UnloadInstance
    shared_memory: SharedMemory
    wishes: Wishes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., cancel: _Optional[_Union[CancelQueries, _Mapping]] = ..., load: _Optional[_Union[LoadInstance, _Mapping]] = ..., unload: _Optional[_Union[UnloadInstance, _Mapping]] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ..., wishes: _Optional[_Union[Wishes, _Mapping]] = ...) -> None: ...

class WorkerMessage(_message.Message):
    __slots__ = ("report", "done", "started", "refusal", "shared_memory")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    report: WorkerReport
    done: BatchDone
    started: BatchStarted
    refusal: Refusal
    shared_memory: SharedMemory
    def __init__(self, report: _Optional[_Union[WorkerReport, _Mapping]] = ..., done: _Optional[_Union[BatchDone, _Mapping]] = ..., started: _Optional[_Union[BatchStarted, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("controller", "version", "token", "pool")
    CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    controller: str
    version: str
    token: str
    pool: Pool
    def __init__(self, controller: _Optional[str] = ..., version: _Optional[str] = ..., token: _Optional[str] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("descriptor", "size_bytes", "key")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    descriptor: int
    size_bytes: int
    key: bytes
    def __init__(self, descriptor: _Optional[int] = ..., size_bytes: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("is_read", "reason", "pool")
    IS_READ_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    is_read: bool
    reason: str
    pool: Pool
    def __init__(self, is_read: bool = ..., reason: _Optional[str] = ..., pool: _Optional[_Union[Pool, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("error_code", "reason")
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    error_code: str
    reason: str
    def __init__(self, error_code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("id", "instance", "inputs", "outputs", "queries", "items", "remaining_us", "sizes", "traces", "alone")
    ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    TRACES_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    id: int
    instance: str
    inputs: _containers.RepeatedCompositeFieldContainer[Column]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    queries: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedScalarFieldContainer[int]
    remaining_us: _containers.RepeatedScalarFieldContainer[int]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    traces: _containers.RepeatedCompositeFieldContainer[QueryTrace]
    alone: bool
    def __init__(self, id: _Optional[int] = ..., instance: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., outputs: _Optional[_Iterable[str]] = ..., queries: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[int]] = ..., remaining_us: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Iterable[int]] = ..., traces: _Optional[_Iterable[_Union[QueryTrace, _Mapping]]] = ..., alone: bool = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "datatype", "tail", "shapes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    tail: _containers.RepeatedScalarFieldContainer[int]
    shapes: _containers.RepeatedCompositeFieldContainer[Shape]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., tail: _Optional[_Iterable[int]] = ..., shapes: _Optional[_Iterable[_Union[Shape, _Mapping]]] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("dims",)
    DIMS_FIELD_NUMBER: _ClassVar[int]
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dims: _Optional[_Iterable[int]] = ...) -> None: ...

class QueryTrace(_message.Message):
    __slots__ = ("place", "traceparent", "tracestate")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TRACESTATE_FIELD_NUMBER: _ClassVar[int]
    place: int
    traceparent: str
    tracestate: str
    def __init__(self, place: _Optional[int] = ..., traceparent: _Optional[str] = ..., tracestate: _Optional[str] = ...) -> None: ...

class BatchStarted(_message.Message):
    __slots__ = ("id", "others")
    ID_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    id: int
    others: int
    def __init__(self, id: _Optional[int] = ..., others: _Optional[int] = ...) -> None: ...

class BatchDone(_message.Message):
    __slots__ = ("id", "error_code", "error", "was_running", "staged_s", "run_s", "queries", "items", "outputs", "sizes", "failures", "others", "run_items")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    STAGED_S_FIELD_NUMBER: _ClassVar[int]
    RUN_S_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    RUN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    id: int
    error_code: str
    error: str
    was_running: bool
    staged_s: float
    run_s: float
    queries: _containers.RepeatedScalarFieldContainer[int]
    items: _containers.RepeatedScalarFieldContainer[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Column]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.RepeatedCompositeFieldContainer[QueryFailure]
    others: int
    run_items: int
    def __init__(self, id: _Optional[int] = ..., error_code: _Optional[str] = ..., error: _Optional[str] = ..., was_running: bool = ..., staged_s: _Optional[float] = ..., run_s: _Optional[float] = ..., queries: _Optional[_Iterable[int]] = ..., items: _Optional[_Iterable[int]] = ..., outputs: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., sizes: _Optional[_Iterable[int]] = ..., failures: _Optional[_Iterable[_Union[QueryFailure, _Mapping]]] = ..., others: _Optional[int] = ..., run_items: _Optional[int] = ...) -> None: ...

class QueryFailure(_message.Message):
    __slots__ = ("id", "error_code", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    error_code: str
    error: str
    def __init__(self, id: _Optional[int] = ..., error_code: _Optional[str] = ..., error: _Optional[str] = ...) -> None: ...

class CancelQueries(_message.Message):
    __slots__ = ("batch", "queries")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    batch: int
    queries: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, batch: _Optional[int] = ..., queries: _Optional[_Iterable[int]] = ...) -> None: ...

class LoadInstance(_message.Message):
    __slots__ = ("instance", "variant")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    instance: str
    variant: bytes
    def __init__(self, instance: _Optional[str] = ..., variant: _Optional[bytes] = ...) -> None: ...

class UnloadInstance(_message.Message):
    __slots__ = ("instance", "reason")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    instance: str
    reason: str
    def __init__(self, instance: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Wishes(_message.Message):
    __slots__ = ("wishes",)
    WISHES_FIELD_NUMBER: _ClassVar[int]
    wishes: bytes
    def __init__(self, wishes: _Optional[bytes] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("worker", "sequence", "cpu_ratio", "memory_ratio", "stall_ratio", "loads", "autoscaling")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CPU_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_RATIO_FIELD_NUMBER: _ClassVar[int]
    STALL_RATIO_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALING_FIELD_NUMBER: _ClassVar[int]
    worker: bytes
    sequence: int
    cpu_ratio: float
    memory_ratio: float
    stall_ratio: float
    loads: _containers.RepeatedCompositeFieldContainer[InstanceLoad]
    autoscaling: bytes
    def __init__(self, worker: _Optional[bytes] = ..., sequence: _Optional[int] = ..., cpu_ratio: _Optional[float] = ..., memory_ratio: _Optional[float] = ..., stall_ratio: _Optional[float] = ..., loads: _Optional[_Iterable[_Union[InstanceLoad, _Mapping]]] = ..., autoscaling: _Optional[bytes] = ...) -> None: ...

class InstanceLoad(_message.Message):
    __slots__ = ("instance", "running", "staged", "items_done", "busy_s", "load_s", "was_cold", "held_items")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    ITEMS_DONE_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    LOAD_S_FIELD_NUMBER: _ClassVar[int]
    WAS_COLD_FIELD_NUMBER: _ClassVar[int]
    HELD_ITEMS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    running: int
    staged: int
    items_done: int
    busy_s: float
    load_s: float
    was_cold: bool
    held_items: int
    def __init__(self, instance: _Optional[str] = ..., running: _Optional[int] = ..., staged: _Optional[int] = ..., items_done: _Optional[int] = ..., busy_s: _Optional[float] = ..., load_s: _Optional[float] = ..., was_cold: bool = ..., held_items: _Optional[int] = ...) -> None: ...

class LeaseCoresRequest(_message.Message):
    __slots__ = ("holder", "cores", "max_s")
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MAX_S_FIELD_NUMBER: _ClassVar[int]
    holder: str
    cores: int
    max_s: float
    def __init__(self, holder: _Optional[str] = ..., cores: _Optional[int] = ..., max_s: _Optional[float] = ...) -> None: ...

class CoreLease(_message.Message):
    __slots__ = ("core_ids",)
    CORE_IDS_FIELD_NUMBER: _ClassVar[int]
    core_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, core_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
