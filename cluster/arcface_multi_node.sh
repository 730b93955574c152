#!/usr/bin/env bash
# ArcFace r100 with Partial-FC on WebFace42M on 16 GPUs of several nodes (Ray Train).
#   cluster/arcface_multi_node.sh /shared/faces/WebFace42M /shared/runs [key.path=value ...]
# On the head first: eval "$(cluster/start_head.sh)"; on each further node, with the same token file,
#   RAY_AUTH_MODE=token ray start --address=HEAD:6379
# Both folders must be the same on all nodes. Another size: launch.num_workers=32. Submitted again,
# the same command goes on from the last state, also with another number of workers.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder with train.rec, train.idx and the .bin sets, on all nodes}
storage=${2:?folder for runs, on all nodes}
shift 2
python=${NFS_PYTHON:-$PWD/.venv/bin/python}
exec "$(dirname "$python")/ray" job submit --working-dir . -- "$python" -m jobs.train_arcface \
    jobs/configs/train_arcface/wf42m_pfc02_16gpus_r100.yaml "data.path=$data" "storage=$storage" "$@"
