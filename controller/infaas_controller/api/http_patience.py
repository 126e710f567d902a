"""How long one REST connection waits for its caller: for his next request, for him to take his answer, and for him to
have heard the last one. What a request itself may take is `http_protocol`'s.

One timer serves many pauses, since a caller that is served pauses thousands of times a second: it is not set at each
but looks, when it rings, since when the connection has been idle.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infaas_controller.api.http_limits import Limits


class PatientProtocol(HttpToolsProtocol):
    """Its timers; all on the loop that serves the connection."""

    def __init__(self, limits: Limits, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._idle_since: float | None = None
        """None while a request is here."""
        self._is_receiving = False
        """Between a request's first byte and its last."""
        self._is_deaf = False
        """What comes is thrown away: the connection is about to end."""
        self._is_over = False
        self._linger: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def _end_waiting(self) -> None:
        """The connection is lost."""
        self._is_over = True
        for timer in (self._linger, self._stall, self.timeout_keep_alive_task):
            if timer is not None:
                timer.cancel()
        self.timeout_keep_alive_task = None

    # Between requests

    def _await_first_byte(self, now: float | None = None) -> None:
        """A connection that says nothing ends like one that has nothing more to say.

        One timer serves many pauses: when it rings too early for the last, it is set anew.
        """
        self._idle_since = self.loop.time() if now is None else now
        if self.timeout_keep_alive_task is None:
            self._set_keep_alive_timer(self.timeout_keep_alive)

    def _set_keep_alive_timer(self, delay_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return  # the next pause sets it
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._set_keep_alive_timer(left_s)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # a close would wait for a caller who takes nothing
        else:
            super().timeout_keep_alive_handler()

    # Answers that are not taken, and the last one

    def _takes_close(self) -> bool:
        """Closing while the caller sends would destroy the answer on its way to him (RFC 9112, 9.6)."""
        if not self._is_receiving or self._is_over or self._linger is not None or self.transport.is_closing():
            return False
        self._is_deaf = True
        self.transport.write_eof()
        self.flow.resume_reading()
        self._linger = self.loop.call_later(self._limits.linger_s, self.transport.abort)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _watch_writing(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self._limits.patience_s, self._check_writing, waiting)

    def _check_writing(self, before: int) -> None:
        """A caller who takes nothing of his answer does not keep it in our memory."""
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()
