"""Arrow schemas of the tables that stages exchange (docs/conventions.md has units and frames)."""

import pyarrow as pa

NUM_LANDMARKS = 68
NUM_IDENTITY = 80
NUM_EXPRESSION = 64
NUM_TEXTURE = 80
NUM_LIGHTING = 27


def _floats(count: int) -> pa.DataType:
    return pa.list_(pa.float32(), count)


CLIPS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("source_uri", pa.string()),
        ("source_sha256", pa.string()),
        ("identity_id", pa.string()),
        ("split", pa.string()),
        ("fps", pa.float64()),
        ("num_frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("has_audio", pa.bool_()),
        ("av_offset_s", pa.float64()),
        ("status", pa.string()),
        ("error", pa.string()),
        # where in the source; how many faces were seen at once
        ("source_start_s", pa.float64()),
        ("source_end_s", pa.float64()),
        ("num_faces", pa.int32()),
        # 0 to 1; av_offset_s is null below nfs.face.speech.MIN_CONFIDENCE
        ("av_confidence", pa.float32()),
        ("av_corrected_s", pa.float64()),
        # frames by status, and medians over the frames with a face (yaw, pitch: of the amount)
        ("frame_statuses", pa.map_(pa.string(), pa.int32())),
        ("face_height_px", pa.float32()),
        ("yaw_deg", pa.float32()),
        ("pitch_deg", pa.float32()),
        ("blur", pa.float32()),
        ("exposure", pa.float32()),
        ("clipped", pa.float32()),
        ("occlusion", pa.float32()),
        # vector of the photo in the dataset.json of its zip
        ("label", pa.list_(pa.float32())),
    ]
)
FRAMES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frame_index", pa.int32()),
        ("time_s", pa.float64()),
        ("image_jpeg", pa.binary()),
        ("image_size_px", pa.int32()),
        ("landmarks_px", _floats(2 * NUM_LANDMARKS)),
        ("crop_from_source", _floats(6)),
        ("detection_score", pa.float32()),
        ("status", pa.string()),
        # measures of the face (nfs/face/quality.py); height in the source
        ("face_height_px", pa.float32()),
        ("yaw_deg", pa.float32()),
        ("pitch_deg", pa.float32()),
        ("blur", pa.float32()),
        ("exposure", pa.float32()),
        ("clipped", pa.float32()),
        ("occlusion", pa.float32()),
    ]
)
AUDIO = pa.schema(
    [
        ("clip_id", pa.string()),
        ("sample_rate_hz", pa.int32()),
        ("samples", pa.binary()),
        ("mel", pa.list_(pa.float32())),
        ("num_mel_frames", pa.int32()),
    ]
)
FITS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frame_index", pa.int32()),
        ("identity", _floats(NUM_IDENTITY)),
        ("expression", _floats(NUM_EXPRESSION)),
        ("texture", _floats(NUM_TEXTURE)),
        ("rotation_rad", _floats(3)),
        ("translation", _floats(3)),
        ("lighting", _floats(NUM_LIGHTING)),
        ("nme_percent", pa.float32()),
        ("photometric_l1", pa.float32()),
        ("status", pa.string()),
    ]
)
FACES = pa.schema(
    [
        ("clip_id", pa.string()),
        # mean over frames; the identity network's size
        ("embedding", pa.list_(pa.float32())),
        ("num_frames", pa.int32()),
    ]
)
TABLES = {"clips": CLIPS, "frames": FRAMES, "audio": AUDIO, "faces": FACES, "fits": FITS}
