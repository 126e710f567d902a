"""The other controllers: how they find each other, and asking them for a decision that only they remember.

Decisions are kept in the memory of the controller that made them, and their ids name it. Nothing on the query path
comes here; a store that is away costs this and nothing else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Mapping, Sequence
from typing import NoReturn, TypeVar
from urllib.parse import quote

from infaas.aio.every import every
from infaas.control import DecisionList
from infaas.domain.cluster import ControllerRecord
from infaas.domain.ids import ControllerId
from infaas.domain.query import Decision
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode, encode
from infaas.store.base import Kind, MetadataStore
from infaas.tokens import Tokens
from infaas_controller.siblings import Siblings

HEARTBEAT_S = 5.0
TTL_S = 3 * HEARTBEAT_S
ASK_WITHIN_S = 2.0
_WILDCARDS = ("0.0.0.0", "::", "[::]", "")
_CONTROLLER = {"here": "true"}
"""Asks no other controller."""
_PROCESS = {"process": "true"}
"""Asks nobody else at all."""
Found = TypeVar("Found")
_log = get_logger(__name__)


def own_url(advertise: str | None, host: str, port: int) -> str:
    """What others dial: as advertised, else the bound address, or this machine's name where all were bound."""
    if advertise:
        return advertise.rstrip("/")
    name = socket.gethostname() if host in _WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name and not name.startswith("[") else f"http://{name}:{port}"


def maker_of(decision_id: str) -> ControllerId | None:
    """The controller that a decision id names (`d-<controller>-<pid>-<n>`); None for a request id."""
    head, _, number = decision_id.rpartition("-")
    controller, _, process = head.removeprefix("d-").rpartition("-")
    is_ours = decision_id.startswith("d-") and bool(controller and process) and number.isdigit()
    return ControllerId(controller) if is_ours else None


class Peers:
    """`run` keeps this controller's record alive; `decision` asks others. Belongs to one event loop."""

    def __init__(
        self, store: MetadataStore, own: ControllerRecord, tokens: Tokens, siblings: Siblings | None = None
    ) -> None:
        """`tokens` are the callers': another controller is asked as any caller asks it.

        `siblings` are the processes that are one controller with this one; None: there can be none.
        """
        self._siblings = siblings
        self._store = store
        self._own = own
        self._tokens = tokens
        self._is_written = False
        self.write_trouble: str | None = None
        """Why the store took no write the last time; None when it did. The heartbeat is the probe."""

    async def run(self) -> NoReturn:
        await every(HEARTBEAT_S, self.announce, name="peers")

    async def announce(self) -> None:
        """Raises UnavailableError."""
        try:
            is_kept = self._is_written and await self._store.touch(Kind.CONTROLLER, self._own.id, ttl_s=TTL_S)
            if not is_kept:
                await self._store.put(Kind.CONTROLLER, self._own.id, encode(self._own), ttl_s=TTL_S)
        except UnavailableError as error:
            self.write_trouble = error.text
            raise
        self._is_written = True
        self.write_trouble = None

    async def withdraw(self) -> None:
        """Take the record back; without a store it expires by itself."""
        try:
            await self._store.delete(Kind.CONTROLLER, self._own.id)
        except UnavailableError as error:
            _log.warning("record not withdrawn; it expires", reason=error.text)

    async def decision(self, key: str, *, is_here: bool = False) -> Decision | None:
        """Of a decision id: from the controller that it names. Of a request id: from whoever knows it. `is_here` asks
        the other processes of this controller only.

        None when nobody who can be asked does; who cannot is logged.
        """
        maker = maker_of(key)
        if maker == self._own.id:
            return None
        siblings = {} if self._siblings is None else self._siblings.urls()
        asked = [url for id, url in siblings.items() if maker in (None, id)]
        found = await self._first([self._ask(url, key, _PROCESS) for url in asked])
        is_ours = maker is not None and self._siblings is not None and self._siblings.has(maker)
        if found is not None or is_here or is_ours:
            return found
        try:
            others = await self._others()
        except UnavailableError as error:
            _log.warning("other controllers are not known", reason=error.text)
            return None
        # Processes of one controller share an address: whichever is asked asks the rest.
        urls = dict.fromkeys(other.url for other in others if maker in (None, other.id))
        return await self._first([self._ask(url, key, _CONTROLLER) for url in urls])

    async def recent(self, limit: int) -> Sequence[Decision]:
        """The newest of the other processes of this controller."""
        urls = [] if self._siblings is None else list(self._siblings.urls().values())
        params = {"limit": str(limit), **_PROCESS}
        lists = await asyncio.gather(*(self._get(f"{url}/v1/decisions", params, DecisionList) for url in urls))
        return [decision for found in lists if found is not None for decision in found.decisions]

    async def _others(self) -> Sequence[ControllerRecord]:
        records = (await self._store.list((Kind.CONTROLLER,))).records
        known = [decode(record.value, ControllerRecord) for record in records if record.key != self._own.id]
        return [one for one in known if self._siblings is None or not self._siblings.has(one.id)]

    async def _first(self, asked: Sequence[Awaitable[Decision | None]]) -> Decision | None:
        return next((decision for decision in await asyncio.gather(*asked) if decision is not None), None)

    async def _ask(self, url: str, key: str, params: Mapping[str, str]) -> Decision | None:
        return await self._get(f"{url}/v1/decisions/{quote(key, safe='')}", params, Decision)

    async def _get(self, url: str, params: Mapping[str, str], kind: type[Found]) -> Found | None:
        import httpx  # here, because a lone controller never needs it

        try:
            # What is ours must not go through a proxy that the environment names.
            async with httpx.AsyncClient(timeout=ASK_WITHIN_S, trust_env=False) as client:
                answer = await client.get(url, params=params, headers=self._tokens.headers())
            if answer.status_code == httpx.codes.OK:
                return decode(answer.content, kind)
            reason = None if answer.status_code == httpx.codes.NOT_FOUND else f"HTTP {answer.status_code}"
        except (httpx.HTTPError, InfaasError) as error:
            reason = f"{type(error).__name__}: {error}"
        if reason is not None:
            _log.warning("another controller was asked in vain", url=url, reason=reason)
        return None
