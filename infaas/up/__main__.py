"""`python -m infaas.up`: the supervisor's own process. `infaas up` becomes it, with flags as `INFAAS_*` variables."""

from __future__ import annotations

import os
import sys

from infaas.errors import InfaasError
from infaas.settings import load_settings
from infaas.up.local import up
from infaas.up.restart import SETTINGS_EXIT
from infaas.up.tether import SUPERVISOR_PID, die_with


def main(argv: list[str]) -> int:
    if os.environ.get(SUPERVISOR_PID):
        # Somebody brought this system up for as long as they live themselves: the demo does.
        die_with(int(os.environ[SUPERVISOR_PID]))
    try:
        return up(load_settings(), is_verbose="--verbose" in argv)
    except InfaasError as error:
        print(f"error: {error.text}", file=sys.stderr)
        return SETTINGS_EXIT


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
