"""grpc.health.v1 and reflection, on each front, asked with grpcio's own stubs."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore.pb import rpc_pb2_grpc
from kvstore.rpc import FRONTS, make_server
from kvstore.services import health, reflection

SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture(params=FRONTS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    server = make_server(front=request.param)
    server.add_servicer(rpc_pb2_grpc.add_ClusterServicer_to_server, rpc_pb2_grpc.ClusterServicer())  # type: ignore[abstract]
    health.register(server)
    reflection.register(server)
    [url] = await server.start(["http://127.0.0.1:0"])
    async with grpc.aio.insecure_channel(url.removeprefix("http://")) as channel:
        yield SimpleNamespace(channel=channel, server=server)
    await server.stop(0)


async def test_health(served: Any) -> None:
    stub = health_pb2_grpc.HealthStub(served.channel)
    assert await stub.Check(health_pb2.HealthCheckRequest()) == SERVING
    assert (await stub.List(health_pb2.HealthListRequest())).statuses[""] == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.NOT_FOUND, "unknown service")
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nope"))
    assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watched = stub.Watch(health_pb2.HealthCheckRequest())
    assert await watched.read() == SERVING
    # A stop ends it, without waiting for who listens.
    await served.server.stop(60)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watched.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_malformed(served: Any) -> None:
    for name in ("Check",):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await served.channel.unary_unary(f"/grpc.health.v1.Health/{name}")(b"\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INTERNAL
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff").read()
    assert refused.value.code() is grpc.StatusCode.INTERNAL


async def test_reflection(served: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="etcdserverpb.Cluster"),
    ]
    listed, file = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = [service.name for service in listed.list_services_response.service]
    assert names == ["etcdserverpb.Cluster", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    assert file.file_descriptor_response.file_descriptor_proto
