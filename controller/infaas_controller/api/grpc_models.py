"""Every unary call over gRPC but infer; the documents are REST's, in messages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import ParseDict

from infaas.errors import NotFoundError, UnavailableError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas_controller.api import documents, stats
from infaas_controller.api.intake import parse_version
from infaas_controller.api.repository import Repository
from infaas_controller.ports import QueryService

Handler = Callable[[Any, Any], Awaitable[Any]]


class ModelCalls:
    def __init__(self, service: QueryService, repository: Repository) -> None:
        self._service = service
        self._repository = repository

    def table(self) -> dict[str, tuple[Any, Handler]]:
        return {
            "ServerLive": (pb.ServerLiveRequest, self.live),
            "ServerReady": (pb.ServerReadyRequest, self.ready),
            "ModelReady": (pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest, self.server),
            "ModelMetadata": (pb.ModelMetadataRequest, self.metadata),
            "ModelConfig": (pb.ModelConfigRequest, self.config),
            "ModelStatistics": (pb.ModelStatisticsRequest, self.stats),
            "RepositoryIndex": (pb.RepositoryIndexRequest, self.index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest, self.load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest, self.unload),
        }

    async def live(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def ready(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._service.is_ready())

    async def model_ready(self, request: Any, context: Any) -> Any:
        """A name that is unknown, or not known yet, is not ready rather than an error: what Triton's clients expect of
        this one question."""
        try:
            is_ready, _ = self._repository.is_ready(request.name, parse_version(request.version))
        except (NotFoundError, UnavailableError):
            is_ready = False
        return pb.ModelReadyResponse(ready=is_ready)

    async def server(self, request: Any, context: Any) -> Any:
        return ParseDict(documents.server_metadata(), pb.ServerMetadataResponse())

    async def metadata(self, request: Any, context: Any) -> Any:
        return ParseDict(documents.metadata(self._resolved(request)), pb.ModelMetadataResponse())

    async def config(self, request: Any, context: Any) -> Any:
        return ParseDict({"config": documents.config(self._resolved(request))}, pb.ModelConfigResponse())

    async def stats(self, request: Any, context: Any) -> Any:
        index, counters = self._repository.index(), self._service.stats()
        if request.name:
            rows = stats.statistics(index, counters, request.name, parse_version(request.version))
        else:
            rows = stats.all_statistics(index, counters)
        return ParseDict({"model_stats": rows}, pb.ModelStatisticsResponse())

    async def index(self, request: Any, context: Any) -> Any:
        rows = documents.repository_index(self._repository.index(), request.ready)
        return ParseDict({"models": rows}, pb.RepositoryIndexResponse())

    async def load(self, request: Any, context: Any) -> Any:
        await self._repository.load(request.model_name, dict.fromkeys(request.parameters, True))
        return pb.RepositoryModelLoadResponse()

    async def unload(self, request: Any, context: Any) -> Any:
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _resolved(self, request: Any) -> documents.Handle:
        return documents.resolve(self._repository.index(), request.name, parse_version(request.version))
