"""The standard health client (grpcio-health-checking), unchanged: `Check` and `Watch`, for probes and load balancers.

python grpc_health_probe.py --url HOST:PORT            checks, and ends with 1 if anything is not as it should be
python grpc_health_probe.py --url HOST:PORT --watch    prints each status until the server ends the stream
"""

from __future__ import annotations

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

KNOWN = ("", "inference.GRPCInferenceService")
Status = health_pb2.HealthCheckResponse


def check(stub: health_pb2_grpc.HealthStub) -> int:
    failed = 0
    for service in KNOWN:
        status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
        failed += status != Status.SERVING
        print(f"{service or 'the server'}: {Status.ServingStatus.Name(status)}")
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
    except grpc.RpcError as error:
        failed += error.code() is not grpc.StatusCode.NOT_FOUND
        print(f"no.such.Service: {error.code().name}")
    else:
        failed += 1
    return 1 if failed else 0


def watch(stub: health_pb2_grpc.HealthStub) -> int:
    for answer in stub.Watch(health_pb2.HealthCheckRequest(service=KNOWN[1])):
        print(Status.ServingStatus.Name(answer.status), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--watch", action="store_true")
    options = parser.parse_args()
    with grpc.insecure_channel(options.url) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return watch(stub) if options.watch else check(stub)


if __name__ == "__main__":
    sys.exit(main())
