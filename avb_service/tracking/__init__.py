"""MLflow: runs, artifacts, and the registry of published models.

Floor 7, and the only importer of mlflow. It is imported when first used, so that a command's help does not wait for it.
"""

from avb_service.tracking.download import pull
from avb_service.tracking.external import EXTERNAL, External, externals, keep
from avb_service.tracking.outbox import Outbox, deliver
from avb_service.tracking.registry import RegisteredVersion, leaderboard, register, set_alias
from avb_service.tracking.runs import NOTE, Run, Status, close_open_children
from avb_service.tracking.server import ServerCommand, check_server, server_command, tracking_uri

__all__ = [
    "EXTERNAL",
    "External",
    "NOTE",
    "Outbox",
    "RegisteredVersion",
    "Run",
    "ServerCommand",
    "Status",
    "check_server",
    "close_open_children",
    "deliver",
    "externals",
    "keep",
    "leaderboard",
    "pull",
    "register",
    "server_command",
    "set_alias",
    "tracking_uri",
]
