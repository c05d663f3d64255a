#!/usr/bin/env bash
# The cluster's MLflow server, on the head: starts it, once, and returns when it answers. It ends when Ray does.
#
# Runs and models are in $AVB_STORAGE/mlflow.db and $AVB_STORAGE/artifacts, users in $AVB_STORAGE/mlflow_users.db; all but this
# server go through it, and log in.
set -euo pipefail
umask 077
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

serve() {
  tail --pid="$ray" -f /dev/null 9>&- & watch=$!
  set -m                                       # a process group for each server, whose children must end with it
  while kill -0 "$watch" 2> /dev/null; do
    python -c 'from avb_service.cli import main; main()' ui --host "$address" --port "$port" --secrets "$AVB_STORAGE/secrets" & server=$!
    wait -n "$watch" "$server" || true
    kill -- "-$server" 2> /dev/null || true
    sleep 1
  done
}

answers() { python -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "$1/health" 2> /dev/null; }

if [ "${1:-}" = serve ]; then serve; exit; fi
ray=$(pgrep -u "$(id -u)" -x gcs_server)
uri=$MLFLOW_TRACKING_URI                        # http://ADDRESS:PORT, from install.sh
port=${uri##*:} address=${uri#http://} address=${address%:*}
export ray address port
# The names that browsers and clients may know the head by; others can be added.
export MLFLOW_SERVER_ALLOWED_HOSTS=${MLFLOW_SERVER_ALLOWED_HOSTS:-$address:$port,$(hostname):$port,$(hostname -f):$port}
exec 9> "$project/mlflow.lock"                 # held as long as a server runs; one whose Ray has gone is about to end
if flock --wait 20 9; then
  MLFLOW_TRACKING_URI=sqlite:///$AVB_STORAGE/mlflow.db \
    setsid bash "${BASH_SOURCE[0]}" serve < /dev/null > "$project/mlflow.log" 2>&1 &
fi
for _ in $(seq 120); do
  if answers "$uri"; then
    echo "MLflow: $uri"
    exit
  fi
  sleep 1
done
echo "the MLflow server at $uri does not answer; the end of its log:" >&2
tail -n 20 "$project/mlflow.log" >&2
exit 1
