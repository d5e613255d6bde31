"""The protection of the dashboard against other sites, whatever ``.streamlit/config.toml`` says here or at home."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import streamlit as st

# What flags of the command line can set, and they come before every file.
FLAGS: dict[str, bool] = {
    "server.enableCORS": True,
    "server.enableXsrfProtection": True,
    "server.enableStaticServing": False,
    "global.developmentMode": False,
}
EMPTY = ("server.corsAllowedOrigins", "server.trustedUserHeaders")  # lists that no flag can empty


def switched_off() -> list[str]:
    """The settings that weaken the protection, by name; Streamlit has read its files, variables and flags by then."""
    weak = [name for name, wanted in FLAGS.items() if bool(_option(name)) != wanted]
    return weak + [name for name in EMPTY if _option(name)]


def is_at_home() -> bool:
    """Whether the page is served to a browser of this machine alone, so that it may change notes on runs."""
    return is_local(_option("server.address"), st.context.ip_address, st.context.headers)


def is_local(address: Any, client: str | None, headers: Mapping[str, str]) -> bool:
    """Whether a server's address and a request are of loopback; ``client`` is None there.

    A request that a proxy has passed on may come from anywhere, and so may a name that leads here by its own wish.
    """
    host = urlsplit(f"//{headers.get('Host') or 'localhost'}").hostname
    is_passed_on = any(headers.get(name) for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"))
    return _is_loopback(str(address)) and client is None and _is_loopback(str(host)) and not is_passed_on


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _option(name: str) -> Any:
    try:
        return st.get_option(name)
    except RuntimeError:  # another version of Streamlit does not have it
        return FLAGS.get(name)
