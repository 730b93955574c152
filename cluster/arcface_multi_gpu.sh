#!/usr/bin/env bash
# ArcFace r50 on MS1MV3 on all GPUs of this machine, with torchrun and NCCL; no Ray.
#   cluster/arcface_multi_gpu.sh /faces/ms1m-retinaface-t1 [key.path=value ...]
# NUM_GPUS (default 8) sets the ranks; the preset's global batch of 1024 stays.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?folder with train.rec, train.idx and the .bin sets}
shift
gpus=${NUM_GPUS:-8}
exec "${NFS_PYTHON:-.venv/bin/python}" -m torch.distributed.run --standalone --nproc-per-node "$gpus" \
    -m jobs.train_arcface jobs/configs/train_arcface/ms1mv3_r50.yaml "data.path=$data" \
    launch.kind=local "launch.num_workers=$gpus" "$@"
