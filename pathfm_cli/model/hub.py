"""Pretrained encoders by timm name: from the local cache, else from the hub."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib import parse

from huggingface_hub import constants
from torch import nn

from pathfm_cli import errors
from pathfm_cli.model import vit

PATIENCE_S = 5.0
"""How long to wait for the hub to answer a connection."""
_PORTS = {"https": 443, "socks5": 1080, "socks5h": 1080, "socks4": 1080}
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""OWNER/NAME of the hub, with a revision or not."""


def pretrained(name: str, **kwargs: Any) -> nn.Module:
    """Build the encoder `name` with timm's weights.

    Args:
        name: a timm name, or `hf-hub:OWNER/NAME`.
        **kwargs: arguments of the architecture.

    Raises:
        errors.UsageError: unknown name.
        errors.InputError: its weights are neither in the cache nor to be had.
    """
    check_name(name)
    # Whatever version of timm is installed, torch then refuses pickled code in what it loads.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    with contextlib.suppress(OSError), _silent(), _offline():
        return _build(name, kwargs)
    if not _reachable(constants.ENDPOINT):
        raise errors.InputError(
            f"The weights of {name} are not in the local cache and the hub cannot be reached.",
            _other_ways(name),
        )
    try:
        with _silent():
            return _build(name, kwargs)
    except OSError as error:
        raise _unavailable(name, error) from error


def _build(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    try:
        return vit.build(name, pretrained=True, **kwargs)
    except (RuntimeError, ValueError) as error:
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> errors.InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return errors.InputError(f"The weights of {name} cannot be had: {reason}.", _other_ways(name))


def _other_ways(name: str) -> str:
    if ":" in name:
        return "download its weights where there is a network: --model FILE --arch TIMM_NAME"
    return f"--model random/{name} for fresh weights, or --model FILE --arch {name}"


def check_name(name: str) -> None:
    """Refuse what only looks like a name: timm's prefixes of local folders, addresses.

    Raises:
        errors.UsageError: it is neither a plain name nor `hf-hub:OWNER/NAME`.
    """
    source, colon, repository = name.partition(":")
    if colon and (source not in ("hf-hub", "hf_hub") or not _REPOSITORY.fullmatch(repository)):
        raise errors.UsageError(f"There is no model {name!r}.", "hf-hub:OWNER/NAME or a path")


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Look into the cache only: without this an offline machine retries for half a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the hub's own lines about each try from the screen; what fails is an error of ours."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy that stands before it, accepts a connection."""
    if constants.HF_HUB_OFFLINE:
        return False
    address = parse.urlsplit(endpoint)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = address.port or _PORTS.get(address.scheme, 80)
        socket.create_connection((address.hostname, port), PATIENCE_S).close()
    except (OSError, ValueError):
        return False
    return True
