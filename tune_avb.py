"""What `ray submit ray_cluster.yaml tune_avb.py` sends to the cluster: `avb tune`, with the same options."""

import typer

from avb_service.cli import guarded
from avb_service.cli.models import tune

if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(tune)
    guarded(app)
