"""Usual answers of one batch, written in one go: all of them first, then all of them sent.

What is sent in one burst finds its callers awake: where an answer left whenever it was written, each woke its caller
anew, which cost the one who sends as much as the writing. What is out of the ordinary in any way is left to the steps
that know every case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

from infaas.observe.log import get_logger
from infaas.rpc.hop.columns import Column
from infaas_controller.api.http_form import Form, Texts, Writer, form_of
from infaas_controller.api.http_known import KnownBody
from infaas_controller.api.service import Inference
from infaas_controller.ports import Batch, Ran, Together

_log = get_logger(__name__)


class Alike(Writer, Protocol):
    """A request that may be answered along with others (`http_exchange.Exchange`)."""

    @property
    def known(self) -> KnownBody | None:
        """What it differs from in nothing but values; None: it may be told of in other words."""

    @property
    def keep_alive(self) -> bool:
        """Whether the connection goes on after it."""

    def done(self) -> bool: ...

    @property
    def standing_fields(self) -> Sequence[tuple[bytes, bytes]]: ...

    def send_whole(self, answer: bytes, at: float) -> bool:
        """On the loop's clock. False: it cannot be sent so, and nothing was."""

    def abort(self) -> None:
        """End the connection: nobody knows what of an answer was sent."""


class FastTogether(Together):
    """One per application."""

    __slots__ = ("_inference",)

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def answer(self, batch: Batch) -> Sequence[int]:
        written, left = self._written(batch)
        now = batch.now
        groups: dict[tuple[str, int, int], tuple[KnownBody, list[int]]] = {}
        for at, known, exchange, answer in written:
            try:
                is_sent = exchange.send_whole(answer, now)
            except Exception as error:  # it costs this caller his answer, and the others nothing
                _log.error("an answer was not sent", exc_info=error)
                exchange.abort()
                is_sent = True
            if is_sent:
                of = known.handle, id(known.requirements), known.outline.items
                if (group := groups.get(of)) is None:
                    group = groups[of] = known, []
                group[1].append(at)
            else:
                left.append(at)
        for known, places in groups.values():
            self._count(known, places, batch)
        return left

    def _written(self, batch: Batch) -> tuple[list[tuple[int, KnownBody, Alike, bytes]], list[int]]:
        """By their places in the batch; and those that are left."""
        outputs, places, prefix, first, now = batch.outputs, batch.places, batch.prefix, batch.first, batch.now
        columns = outputs.columns
        items = columns[0].items if columns else ()
        written: list[tuple[int, KnownBody, Alike, bytes]] = []
        left: list[int] = []
        known: KnownBody | None = None
        form: Form | None = None
        texts = Texts(columns)
        made_of = (
            batch.ran.variant,
            batch.ran.version,
            batch.ran.worker,
            [(c.name, c.datatype, c.tail) for c in columns],
        )
        owners = cast(list[Alike], [ended.owner for ended in batch.ended])
        for at, ended in enumerate(batch.ended):
            exchange, place = owners[at], places[ended.number]
            if exchange.done() or not exchange.keep_alive:
                left.append(at)
                continue
            here = exchange.known
            if here is None or not isinstance(place, int) or not items or items[place] != here.outline.items:
                left.append(at)
                continue
            query = ended.query
            try:
                if here is not known:
                    known, form = here, _form(here, exchange, batch.ran, columns, place, made_of)
                if form is None:
                    left.append(at)
                    continue
                answer = form.write(
                    query.id, f"{prefix}{first + at}", ended.queue_s, now - query.arrived_at, columns, place, texts
                )
            except Exception:  # the ordinary steps meet it again, and tell of it
                known = None
                left.append(at)
                continue
            written.append((at, here, exchange, answer))
        return written, left

    def _count(self, known: KnownBody, places: Sequence[int], batch: Batch) -> None:
        ended, now = batch.ended, batch.now
        self._inference.count_together(
            known.handle,
            known.requirements.priority,
            batch.ran,
            [now - ended[at].query.arrived_at for at in places],
            [ended[at].queue_s for at in places],
            len(places) * known.outline.items,
        )


def _form(
    known: KnownBody, exchange: Alike, ran: Ran, columns: Sequence[Column], place: int, made_of: tuple[object, ...]
) -> Form | None:
    """The one that its last answers had, while what it was made of holds. `place`: of a query with as many items as all
    that are known so."""
    if known.requirements.explain:
        return None
    standing = exchange.standing_fields
    if known.form_key != made_of or known.form_standing is not standing:
        known.form_key, known.form_standing = made_of, standing
        known.form = form_of(exchange, ran, columns, place)
    if known.form is not None:
        known.form.ran(ran.run_s)
    return known.form
