#!/usr/bin/env bash
# ArcFace r50 on MS1MV3 on one GPU, in this process.
#   cluster/arcface_single_gpu.sh /faces/ms1m-retinaface-t1 [key.path=value ...] [--dry-run]
# Without faces: cluster/arcface_single_gpu.sh any 'data={kind: synthetic}'
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder with train.rec, train.idx and the .bin sets}
shift
exec "${NFS_PYTHON:-.venv/bin/python}" -m jobs.train_arcface \
    jobs/configs/train_arcface/ms1mv3_r50_onegpu.yaml "data.path=$data" launch.kind=local "$@"
