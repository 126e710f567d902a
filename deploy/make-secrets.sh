#!/bin/sh
# Makes the cluster's secrets, each a file of its own; what is there already stays.
# usage: sh deploy/make-secrets.sh [FOLDER]      (deploy/secrets; INFAAS_SECRETS tells the compose file of another one)
#
#   token       what callers must send
#   prometheus  the same for the scraper, which takes a file of one line only
#   cluster     what controllers and generators must send to workers; callers need not know it
#   redis, postgres  passwords
#
# Only this user may enter the folder, and git adds nothing of it. The files themselves are readable for all, since the programs in the containers,
# where each file is mounted alone, are users of their own.
set -eu
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
[ -e "$folder/.gitignore" ] || echo '*' >"$folder/.gitignore"
for name in token prometheus cluster redis postgres; do
  [ -s "$folder/$name" ] && continue
  if [ "$name" = prometheus ]; then
    head -n 1 "$folder/token" | tr -d '\n' >"$folder/$name"
  else
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name"
  fi
  chmod 444 "$folder/$name"
  echo "wrote $folder/$name"
done
