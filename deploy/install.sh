#!/usr/bin/env bash
# Prepares one host of the cluster; `ray up` runs it on each. Run again, it only does what is left to do.
#
#   install.sh SHARED_FOLDER
#
# The host's own python is used where it has all that the project needs, as in an image that was made for it. Elsewhere
# the project and its dependencies are installed into an environment of their own, with $AVB_PYTHON or python3.
set -euo pipefail
umask 077
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
storage=$1
venv=$project/.venv

suits() { command -v "$1" > /dev/null && "$1" "$project/deploy/requirements.py"; }

install() {
  "${AVB_PYTHON:-python3}" -m venv "$venv"
  # Ray wants the same versions on all hosts: the first one chooses, the others follow.
  local chosen constraint=()
  chosen=$storage/requirements-$(sha256sum < "$project/pyproject.toml" | cut -c1-12).txt
  if [ -f "$chosen" ]; then constraint=(--constraint "$chosen"); fi
  "$venv/bin/python" -m pip install --quiet --editable "$project" "${constraint[@]}"
  if [ ! -f "$chosen" ]; then "$venv/bin/python" -m pip freeze --exclude-editable > "$chosen"; fi
}

if ! mkdir -p "$storage" || [ ! -w "$storage" ]; then
  echo "$(hostname): cannot write $storage; name a folder on a disk that all hosts share" >&2
  exit 1
fi
secrets=$storage/secrets
if [ -z "${RAY_HEAD_IP:-}" ]; then bash "$project/deploy/secrets.sh" "$secrets"; fi    # by the head, for all

path="export PATH=$venv/bin:\$PATH"
if ! suits "$venv/bin/python"; then
  if suits python; then path=; else install; fi
fi

# Where Ray listens on each host, beside 6379 on the head; docs/operations.md names them all, for a firewall.
ports="--node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382 --metrics-export-port=6383"
ports+=" --dashboard-agent-listen-port=6384 --dashboard-agent-grpc-port=6385 --min-worker-port=10100 --max-worker-port=10999"

cat > "$project/env.sh" <<END
# Written by deploy/install.sh; read by each shell of this user.
$path
export PYTHONPATH=$project AVB_STORAGE=$storage
export RAY_ADDRESS=auto RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$secrets/ray_token
export AVB_RAY_PORTS="$ports"
export RAY_TMPDIR=\${AVB_TMP:-/tmp/ray}
export MLFLOW_TRACKING_USERNAME=avb MLFLOW_TRACKING_PASSWORD=\$(cat $secrets/mlflow_password)
END
line="if [ -f $project/env.sh ]; then . $project/env.sh; fi"
grep -qxF "$line" ~/.bashrc 2> /dev/null || echo "$line" >> ~/.bashrc

. "$project/env.sh"
# `ray up` tells the workers where the head is; the head knows itself as Ray does.
head=${RAY_HEAD_IP:-$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')}
echo "export MLFLOW_TRACKING_URI=http://$head:5000" >> "$project/env.sh"
if [ -z "${RAY_HEAD_IP:-}" ] && [ -f ~/ray_bootstrap_config.yaml ]; then   # on the head, where a search waits for the others
  count='import sys, yaml; types = yaml.safe_load(sys.stdin)["available_node_types"].values()
print(1 + sum(each.get("min_workers", 0) for each in types))'
  echo "export AVB_NODES=\${AVB_NODES:-$(python -c "$count" < ~/ray_bootstrap_config.yaml)}" >> "$project/env.sh"
fi
