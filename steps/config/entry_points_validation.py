"""Check what serve, monitor and export are asked for."""

import ipaddress
import re

from steps.config.entry_points import Export, Monitor, Serve
from steps.config.refusal import at_least, require
from steps.evaluation.gates import Section, read_gates
from steps.records.errors import ConfigError


def check_serve(serve: Serve) -> None:
    """Raise ConfigError for an address, limit or share that cannot be used."""
    require(bool(serve.model.strip()), "serve.model", repr(serve.model), "a model, such as models:/name@champion")
    require(0 <= serve.port < 2**16, "serve.port", serve.port, "0 to 65535")
    if serve.api_key_env is None and not is_loopback(serve.host):
        msg = f"serve.host={serve.host} needs a key: set serve.api_key_env, or listen on 127.0.0.1"
        raise ConfigError(msg)
    for key in ("max_body_bytes", "max_waiting"):
        at_least(1, f"serve.{key}", getattr(serve, key))
    at_least(0, "serve.grace", serve.grace)
    require(0 <= serve.trace_share <= 1, "serve.trace_share", serve.trace_share, "a share from 0 to 1")
    for key in ("timeout", "follow_seconds"):
        require(getattr(serve, key) > 0, f"serve.{key}", getattr(serve, key), "more than 0 seconds")


def check_export(export: Export) -> None:
    """Raise ConfigError for the URI of a version that cannot be used."""
    named = re.fullmatch(r"models:/[^/@]+[/@][^/@]+", export.model) is not None
    require(named, "export.model", export.model, "models:/<name>@<alias> or models:/<name>/<version>")


def check_monitor(monitor: Monitor) -> None:
    """Raise ConfigError for a version, window or gate that cannot be used."""
    fits = re.fullmatch(r"models:/[^/@]+(/\d+|@[^/@]+)", monitor.model) is not None
    require(fits, "monitor.model", monitor.model, "models:/<name>@<alias> or models:/<name>/<version>")
    hours = monitor.window_hours
    require(hours is None or hours > 0, "monitor.window_hours", hours, "more than 0 hours, or null")
    at_least(1, "monitor.limit", monitor.limit)
    at_least(0, "monitor.reask", monitor.reask)
    try:
        read_gates(monitor.gates, Section("monitor.gates"))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def is_loopback(host: str) -> bool:
    """Return whether *host* is this machine's own loopback, by name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
