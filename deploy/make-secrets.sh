#!/bin/sh
# Makes the cluster's secrets, each a file of its own; what is there already stays.
# usage: sh deploy/make-secrets.sh [FOLDER]      (deploy/secrets; INFAAS_SECRETS tells the compose file of another one)
#
# Only this user may enter the folder. The files themselves are readable for all, since the programs in the containers,
# where each file is mounted alone, are users of their own.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
for name in token redis postgres; do
  [ -s "$folder/$name" ] && continue
  od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name"
  chmod 444 "$folder/$name"
  echo "wrote $folder/$name"
done
