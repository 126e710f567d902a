"""What the REST edge does for the control plane's routes: one error body, one credential."""

from __future__ import annotations

import httpx
from computing_service import ComputingService
from fastapi import APIRouter
from pydantic import BaseModel, SecretStr
from serving import Serving, serving

from infaas.errors import ConflictError
from infaas.settings import AuthSettings, Settings

INFER = "/v2/models/simple/infer"
BODY = {
    "inputs": [
        {"name": name, "shape": [1, 16], "datatype": "INT32", "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}


class Thing(BaseModel):
    name: str


def rest_of(running: Serving) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{running.http}")


def admin() -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/things/{number}")
    async def thing(number: int) -> dict[str, int]:
        if number == 13:
            raise ConflictError("13 is taken")
        if number == 0:
            raise RuntimeError("password=hunter2")
        return {"number": number}

    @router.post("/things")
    async def make(thing: Thing) -> Thing:
        return thing

    return router


async def test_the_control_planes_errors_have_the_same_body_too() -> None:
    async with serving(ComputingService(), routers=(admin(),)) as running, rest_of(running) as client:
        assert (await client.get("/v1/things/5")).json() == {"number": 5}
        wrong = await client.get("/v1/things/five")
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid-argument")
        assert "path.number" in wrong.json()["error"]
        taken = await client.get("/v1/things/13")
        assert (taken.status_code, taken.json()["error"]) == (409, "13 is taken")
        broken = await client.get("/v1/things/0")
        assert (broken.status_code, broken.json()["code"]) == (500, "internal")
        assert "hunter2" not in broken.text
        assert broken.json()["request_id"] == broken.headers["x-request-id"]
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {path for path in paths if path.startswith("/v1")} == {"/v1/things", "/v1/things/{number}"}
        assert "/v2/models/{name}/infer" in paths
        assert "422" not in paths["/v1/things/{number}"]["get"]["responses"]


async def test_with_a_token_only_health_is_open() -> None:
    settings = Settings(auth=AuthSettings(token=SecretStr("s3cret")))
    async with serving(ComputingService(), settings, (admin(),)) as running, rest_of(running) as client:
        for path in ("/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/healthz"):
            assert (await client.get(path)).status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
            for method, path in (
                ("POST", INFER),
                ("GET", "/v2"),
                ("GET", "/v1/things/5"),
                ("GET", "/openapi.json"),
            ):
                answer = await client.request(method, path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
        good = {"authorization": "bearer s3cret"}
        assert (await client.post(INFER, json=BODY, headers=good)).status_code == 200
        assert (await client.get("/v1/things/5", headers=good)).status_code == 200


async def test_a_body_that_is_no_json_is_refused_with_what_and_where() -> None:
    async with serving(ComputingService(), routers=(admin(),)) as running, rest_of(running) as client:
        headers = {"content-type": "application/json"}
        refused = await client.post("/v1/things", content=b'{"name": nope}', headers=headers)
        assert refused.status_code == 400
        assert refused.json()["error"] == "the body is not JSON: Expecting value at character 9"
        missing = await client.post("/v1/things", json={})
        assert missing.json()["error"] == "body.name: Field required (got {})"
