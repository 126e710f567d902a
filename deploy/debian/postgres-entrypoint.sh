# What the official image does with these variables: an empty PGDATA becomes a cluster with one role and its database.
# It is made beside its place and put there when it is whole, so that one that was broken off is made again.
set -eu
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  new="$PGDATA.new"
  rm -rf "$new"
  initdb --pgdata="$new" --username="$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" --auth-host=scram-sha-256 \
    --auth-local=trust --encoding=UTF8 --locale=C.UTF-8
  echo 'host all all all scram-sha-256' >>"$new/pg_hba.conf"
  pg_ctl --pgdata="$new" -w start -o '-c listen_addresses='
  createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl --pgdata="$new" -w stop
  mv "$new" "$PGDATA"
fi
exec postgres -c listen_addresses='*'
