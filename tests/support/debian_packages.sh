#!/usr/bin/env bash
# What the tests need beside Python packages: a PostgreSQL server and a browser. Installed where they are missing.
# Arguments: further packages that have to be there.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null || command -v postgres > /dev/null || missing+=(postgresql)
command -v chromium > /dev/null || missing+=(chromium)
for package in "$@"; do
  dpkg-query --show --showformat '${Status}' "$package" 2> /dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
  echo "the tests need ${missing[*]}: install them with your system's package manager and run this again" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# The server packages start a cluster of their own otherwise; the tests start theirs on a free port.
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
