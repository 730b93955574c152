#!/usr/bin/env bash
# Start a Ray head on this machine with token authentication and a dashboard on loopback only.
#   cluster/start_head.sh [extra `ray start` arguments]
# Prints the exports that a client needs.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python=${NFS_PYTHON:-$here/.venv/bin/python}
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1
port=${NFS_RAY_PORT:-6379}
dashboard=${NFS_RAY_DASHBOARD_PORT:-8265}
if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    mkdir -p "$(dirname "$RAY_AUTH_TOKEN_PATH")"
    (umask 077 && "$python" -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH")
fi
chmod 600 "$RAY_AUTH_TOKEN_PATH"
"$(dirname "$python")/ray" start --head --port="$port" --dashboard-host=127.0.0.1 \
    --dashboard-port="$dashboard" --disable-usage-stats "$@" >&2
# The head answers before its job agent does; a submission in between is refused.
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
SECONDS=0
until "$(dirname "$python")/ray" job submit --no-wait -- true > /dev/null 2>&1; do
    if [ "$SECONDS" -gt 60 ]; then
        echo "start_head: no job agent after a minute; a second cluster on this machine needs" \
            "--dashboard-agent-listen-port=PORT; logs are in /tmp/ray" >&2
        exit 1
    fi
    sleep 1
done
cat <<END
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard
END
