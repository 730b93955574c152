"""THE dataset training loop and what belongs to it."""

from nfs.training.loop import LoopSettings, train
from nfs.training.task import DistributedTask, Evaluation, MapDataset, TrainTask

__all__ = [
    "DistributedTask",
    "Evaluation",
    "LoopSettings",
    "MapDataset",
    "TrainTask",
    "train",
]
