"""The ways to ask; apart from what speaks them, so that the command line can list them without loading any."""

from __future__ import annotations

from enum import StrEnum


class Protocol(StrEnum):
    REST = "rest"
    REST_BINARY = "rest-binary"
    GRPC = "grpc"
