"""Where secrets come from."""

from __future__ import annotations

from typing import Protocol


class SecretSource(Protocol):
    """Fills ``${secret.NAME}`` in; asked at each use, because secrets are exchanged while a process runs."""

    def fill_in(self, template: str, host: str | None) -> str:
        """Return ``template`` with every ``${secret.NAME}`` replaced; nothing else in it is expanded.

        Args:
            template: a text of an agent's config or a setting.
            host: where the text will be sent, ``host`` or ``host:port``; None when it stays in this machine.

        Raises:
            AgentFailure: invalid_request, naming the secret (never its value), when it is not set, is set twice,
                can't be read, or may not go to ``host``.
        """
        ...
