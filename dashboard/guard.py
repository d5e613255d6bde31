"""The protection of the dashboard against other sites, whatever ``.streamlit/config.toml`` says here or at home."""

from __future__ import annotations

from typing import Any

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


def _option(name: str) -> Any:
    try:
        return st.get_option(name)
    except RuntimeError:  # another version of Streamlit does not have it
        return FLAGS.get(name)
