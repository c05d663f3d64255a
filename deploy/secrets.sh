#!/usr/bin/env bash
# Makes the passwords and keys of a cluster and its MLflow server, each in a file of its own that only this user can read.
# What is there already stays; to change one, remove its file and run this again.
#
#   secrets.sh FOLDER        then: avb ui --secrets FOLDER
#
#   ray_token             lets drivers, jobs and hosts into a Ray cluster
#   mlflow_password       of MLflow's user avb, when the server starts for the first time
#   mlflow_session_key    signs the forms of MLflow's pages
#   postgres_password     of the database, and the same as `pgpass`, which its clients read
#   s3_credentials        empty; for a bucket: [default], aws_access_key_id = ..., aws_secret_access_key = ...
#   credentials           for those who use the server: copy it to ~/.mlflow/credentials
set -euo pipefail
umask 077
mkdir -p "$1"
cd "$1"

for name in ray_token mlflow_password mlflow_session_key postgres_password; do
  if [ ! -s "$name" ]; then head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$name"; fi
  if [ -n "$(tail -c 1 "$name")" ]; then echo >> "$name"; fi   # so that nothing is glued to it where it is printed
done
touch s3_credentials
echo "*:*:*:*:$(cat postgres_password)" > pgpass
printf '[mlflow]\nmlflow_tracking_username = avb\nmlflow_tracking_password = %s\n' "$(cat mlflow_password)" > credentials
chmod 600 ray_token mlflow_password mlflow_session_key postgres_password pgpass s3_credentials credentials
