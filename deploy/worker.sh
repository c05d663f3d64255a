#!/usr/bin/env bash
# Ray on a worker: joins the head, and ends when the head has gone. `ray down` stops Ray on the head only; without this,
# the raylets of the workers would end after a minute, and their agents never.
#
#   worker.sh HEAD_ADDRESS
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

ray stop
exec 9> "$project/worker.lock"                # held until whoever watches over the Ray just stopped has seen it
flock --wait 60 9
RAY_gcs_rpc_server_reconnect_timeout_s=5 bash "$project/deploy/start.sh" --address="$1:6379" 9>&-
setsid bash -c 'tail --pid="$0" -f /dev/null; ray stop --force' "$(pgrep -n -u "$(id -u)" -x raylet)" < /dev/null > /dev/null 2>&1 &
