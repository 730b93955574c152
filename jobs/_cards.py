"""Dataset cards of the artifacts that jobs write, gathered from their tables part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nfs.artifacts.unit_tables import UnitTables
from nfs.report.dataset_card import CARD_FILE, DatasetCard, Histogram, build_card
from nfs.tracking.protocol import Tracker

Quarantine = Sequence[Mapping[str, str]]


def write_clips_card(
    uri: str,
    rows: Sequence[Mapping[str, Any]],
    counts: Mapping[str, int],
    quarantined: Quarantine,
    tracker: Tracker,
) -> None:
    """Write the card of `clips` into the artifact and send it to the tracker.

    Args:
        uri: Artifact directory, before its manifest.
        rows: All rows of the table `clips`.
        counts: Counts of the manifest.
        quarantined: Entries of the manifest.
        tracker: The run's tracker.
    """
    good = [row for row in rows if row["status"] == "ok"]
    names = {
        "duration_s": "duration of a clip, s",
        "yaw_deg": "yaw of a clip (median amount), degrees",
        "pitch_deg": "pitch of a clip (median amount), degrees",
        "blur": "blur of a clip (median), 0 sharp to 1",
        "exposure": "exposure of a clip (median), 0 to 1",
        "occlusion": "occlusion of a clip (median), 0 to 1",
        "face_height_px": "face height in the source (median), px",
        "av_offset_s": "av_offset_s of a clip, s",
    }
    histograms = [Histogram.of(n, [row[column] for row in good]) for column, n in names.items()]
    frames: Counter[str] = Counter()
    splits: Counter[str] = Counter()
    per_identity: Counter[str] = Counter()
    for row in good:
        frames.update(dict(row["frame_statuses"] or {}))
        splits[row["split"]] += 1
        per_identity[row["identity_id"]] += 1
    histograms.append(Histogram.of("clips of an identity", list(per_identity.values())))
    seconds = sum(row["duration_s"] for row in good)
    card = DatasetCard(
        title="Clips",
        facts={"kind": "clips", "written by": "jobs.preprocess"},
        counts={**counts, "minutes": round(seconds / 60, 2)},
        histograms=histograms,
        tallies={
            "status of clips": _sorted(Counter(row["status"] for row in rows)),
            "status of frames": _sorted(frames),
            "clips by split": _sorted(splits),
        },
        quarantined=[(entry["item"], entry["reason"]) for entry in quarantined],
    )
    _write(uri, card, tracker, "clips_card.html")


def write_fits_card(
    uri: str,
    facts: Mapping[str, str],
    counts: Mapping[str, float],
    quarantined: Quarantine,
    tracker: Tracker,
) -> None:
    """Write the card of `fits` into the artifact and send it to the tracker.

    Args:
        uri: Artifact directory, before its manifest.
        facts: Model and source.
        counts: Numbers of the run.
        quarantined: Entries of the manifest.
        tracker: The run's tracker.
    """
    import numpy as np

    frames = Histogram("NME of a frame, % of the eye distance", 0, 10, 40)
    medians: list[float | None] = []
    photometric = Histogram("photometric L1 of a frame, 0 to 1", 0, 0.5)
    yaw = Histogram("turn of the head in a frame, degrees", -90, 90, 36)
    statuses: Counter[str] = Counter()
    columns = ["nme_percent", "photometric_l1", "rotation_rad", "status"]
    for _, table in UnitTables(uri).clips("fits", columns):
        statuses.update(table["status"].to_pylist())
        errors = table["nme_percent"].to_numpy()
        usable = np.isfinite(errors)
        if not usable.any():
            continue
        frames.add(errors[usable])
        medians.append(float(np.median(errors[usable])))
        photometric.add(table["photometric_l1"].to_numpy()[usable])
        rotation = np.array(table["rotation_rad"].to_pylist(), np.float64)[usable]
        yaw.add(np.degrees(rotation[:, 1]))
    card = DatasetCard(
        title="3DMM fits",
        facts={"kind": "fits", "written by": "jobs.fit_3dmm", **facts},
        counts=counts,
        histograms=[Histogram.of("NME of a clip (median), %", medians), frames, photometric, yaw],
        tallies={"status of frames": _sorted(statuses)},
        quarantined=[(entry["item"], entry["reason"]) for entry in quarantined],
    )
    _write(uri, card, tracker, "fits_card.html")


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _write(uri: str, card: DatasetCard, tracker: Tracker, name: str) -> None:
    from nfs.artifacts import Store

    text = build_card(card)
    Store(uri).write_bytes(CARD_FILE, text.encode())
    tracker.log_text(text, name)
