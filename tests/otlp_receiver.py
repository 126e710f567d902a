"""A collector for tests: takes OTLP over HTTP, in a process of its own, and writes each span as a line of JSON.

python otlp_receiver.py FILE      prints its port, then serves until its standard input ends
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

LOCK = threading.Lock()


def spans_of(request: ExportTraceServiceRequest) -> list[dict[str, Any]]:
    found = []
    for resource in request.resource_spans:
        service = {item.key: item.value.string_value for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                attributes = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}
                found.append(
                    {
                        "service": service.get("service.name"),
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "state": span.trace_state,
                        "began_ns": span.start_time_unix_nano,
                        "ended_ns": span.end_time_unix_nano,
                        "status": span.status.code,
                        "message": span.status.message,
                        "attributes": attributes,
                    }
                )
    return found


class Handler(BaseHTTPRequestHandler):
    target: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path != "/v1/traces" or self.headers.get("content-type") != "application/x-protobuf":
            self.send_error(404, "not a trace export")
            return
        lines = "".join(json.dumps(span) + "\n" for span in spans_of(ExportTraceServiceRequest.FromString(body)))
        with LOCK, self.target.open("a") as out:
            out.write(lines)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: what matters is in the file."""


def main() -> None:
    Handler.target = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, name="receiver", daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
    server.shutdown()


if __name__ == "__main__":
    main()
