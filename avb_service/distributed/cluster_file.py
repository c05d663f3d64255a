"""A cluster file: what it says of the hosts, and what is wrong with it.

Floor 8.
"""

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import jsonschema

from avb_service.errors import ConfigError
from avb_service.trees import read_yaml

# What begins with a dash would be an option of ssh.
ADDRESS, USER = r"[A-Za-z0-9][A-Za-z0-9_.:-]*", r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


@dataclass(frozen=True)
class ClusterFile:
    """What a cluster file says of its hosts.

    Attributes:
        hosts: their addresses, the head first.
        user: who logs in.
        key: the private key.
        proxy: ssh's ProxyCommand; may be empty.
        storage: the folder that they share.
    """

    hosts: tuple[str, ...]
    user: str
    key: Path
    proxy: str
    storage: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file for `ray up` whose provider is local.

        Raises:
            ConfigError: it lacks what is needed, or the key is not there; names everything at once.
            UserError: it cannot be read, or is not YAML.
        """
        tree = read_yaml(path)
        provider, auth = _section(tree, "provider"), _section(tree, "auth")
        head: Any = provider.get("head_ip")
        workers: Any = provider.get("worker_ips")
        user: Any = auth.get("ssh_user")
        key: Any = auth.get("ssh_private_key")
        proxy: Any = auth.get("ssh_proxy_command")
        commands = tree.get("setup_commands")
        words = [_words(str(each)) for each in commands] if isinstance(commands, list) else []
        folders = [line[at + 1] for line in words for at, word in enumerate(line[:-1]) if word.endswith("/install.sh")]
        listed = isinstance(workers, list) and all(_is(ADDRESS, each) for each in workers)
        hosts = (head, *(workers if listed else ()))
        twice = [host for host, times in Counter(map(str, hosts)).items() if times > 1]
        wrong = {
            f"provider.type: given {provider.get('type')!r}, expected local": provider.get("type") != "local",
            f"provider.head_ip: given {head!r}, expected an address": not _is(ADDRESS, head),
            f"provider.worker_ips: given {workers!r}, expected a list of addresses": not listed,
            f"provider: {', '.join(twice)} is named twice": bool(twice),
            f"auth.ssh_user: given {user!r}, expected a name": not _is(USER, user),
            f"auth.ssh_private_key: there is no file {key}": not os.path.isfile(os.path.expanduser(str(key))),
            f"auth.ssh_private_key: {key} is the public half: name it without .pub": str(key).endswith(".pub"),
            f"auth.ssh_proxy_command: given {proxy!r}, expected a command": not isinstance(proxy, str | None),
            "setup_commands: expected bash .../deploy/install.sh SHARED_FOLDER": not folders,
            f"setup_commands: {' '.join(folders)} is no absolute path": any(f[0] not in "/~" for f in folders),
        }
        if problems := [text for text, is_so in wrong.items() if is_so] + refused_by_ray(tree, {"provider", "auth"}):
            raise ConfigError(problems, str(path))
        return cls(hosts, user, Path(key).expanduser(), proxy or "", folders[0])


def refused_by_ray(tree: Mapping[str, Any], apart: Collection[str]) -> list[str]:
    """What `ray up` would not take of a cluster file, by its own schema, apart from some sections."""
    schema = json.loads(files("ray").joinpath("autoscaler/ray-schema.json").read_text(encoding="utf-8"))
    errors = jsonschema.Draft7Validator(schema).iter_errors(tree)
    return [
        ": ".join(filter(None, (".".join(map(str, error.absolute_path)), error.message)))
        for error in errors
        if not {*error.absolute_path} & {*apart}
    ]


def _is(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _words(command: str) -> list[str]:
    try:
        return [word for word in shlex.split(command) if word]
    except ValueError:  # a quote that is not closed
        return []


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name)
    return section if isinstance(section, dict) else {}
