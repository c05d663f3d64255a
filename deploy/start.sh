#!/usr/bin/env bash
# Starts Ray on this host, with what else `ray start` is told. Ray lets everybody write its sockets, and code that it will
# run: so it keeps them below a folder that is this user's alone, $AVB_TMP or /tmp/ray, and does not start elsewhere.
#
#   start.sh --head ... | --address=...
set -euo pipefail
folder=$RAY_TMPDIR                             # from install.sh

if ! mkdir -p -m 700 "$folder"; then
  echo "$(hostname): cannot make $folder for Ray; export AVB_TMP=FOLDER in ~/.bashrc" >&2
  exit 1
fi
if [ -L "$folder" ] || [ ! -O "$folder" ]; then
  echo "$(hostname): $folder is somebody else's: have it removed, or export AVB_TMP=FOLDER in ~/.bashrc" >&2
  exit 1
fi
chmod 700 "$folder"
ln -sfn ray/session_latest "$folder/session_latest"                  # where Ray's own hints look for logs

start() { ray start --temp-dir="$folder/ray" $AVB_RAY_PORTS --disable-usage-stats "$@"; }
for pause in 5 30 0; do                        # Ray gives up after 30 s, which a busy host may take; a port may come free
  if start "$@"; then exit; fi
  ray stop --force                             # what has started, which nobody would end
  sleep "$pause"
done
echo "$(hostname): Ray did not start; $folder/ray/session_latest/logs says why, in raylet.err and gcs_server.err" >&2
exit 1
