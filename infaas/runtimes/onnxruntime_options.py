"""How an ONNX Runtime session is opened, by the profiler and by the worker alike.

A profile is a promise only if what was measured is what runs, so the settings stand once, here. ONNX Runtime is
imported when a session is about to be opened, never before: the idle controller and generator must stay small.
"""

from __future__ import annotations

from typing import Any

PROVIDERS = ("CPUExecutionProvider",)


def session_options(threads: int) -> Any:
    """An `onnxruntime.SessionOptions` for a session that runs one batch at a time on `threads` threads.

    The caller's thread is one of them. Idle pool threads sleep instead of spinning, because instances share cores
    (SURFACE rule 14). Hardware-specific layouts are applied when the session is opened, on the machine that runs it,
    so that the stored artifact stays portable.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def open_session(path: str, threads: int) -> Any:
    """An `onnxruntime.InferenceSession` on the CPU. Raises what ONNX Runtime raises for a graph it cannot run."""
    import onnxruntime

    return onnxruntime.InferenceSession(path, sess_options=session_options(threads), providers=list(PROVIDERS))
