"""The `nfs` command: configurations, sample media, artifacts, checkpoints, a health check."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from nfs.config.jobs import schema_of
from nfs.errors import NfsError

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Show, describe and compare configurations.")
samples_app = typer.Typer(no_args_is_help=True, help="Real media to try things with.")
artifact_app = typer.Typer(no_args_is_help=True, help="Look into stage directories.")
checkpoint_app = typer.Typer(no_args_is_help=True, help="Look into checkpoints.")
records_app = typer.Typer(no_args_is_help=True, help="Face records for train_arcface.")
for name, child in (
    ("config", config_app),
    ("samples", samples_app),
    ("artifact", artifact_app),
    ("checkpoint", checkpoint_app),
    ("records", records_app),
):
    app.add_typer(child, name=name)


def main() -> None:
    """Run the command; nfs errors become one line and an exit code."""
    try:
        app(standalone_mode=True)
    except NfsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@config_app.command("show")
def config_show(
    job: str, file: Path, overrides: Annotated[list[str] | None, typer.Argument()] = None
) -> None:
    """Print the resolved configuration of JOB from FILE and key.path=value OVERRIDES."""
    import yaml

    config = schema_of(job).load(file, overrides or [])
    print(yaml.safe_dump(config.tree(), sort_keys=False), end="")


@config_app.command("schema")
def config_schema(job: str) -> None:
    """Print the JSON schema of JOB's configuration, with each field's meaning."""
    print(json.dumps(schema_of(job).model_json_schema(), indent=1))


@config_app.command("diff")
def config_diff(job: str, first: Path, second: Path) -> None:
    """Print the settings that differ between two files of JOB."""
    from nfs.config.base import flatten

    schema = schema_of(job)
    a, b = (dict(flatten(schema.load(f).tree())) for f in (first, second))
    for key in sorted(a.keys() | b.keys()):
        if a.get(key) != b.get(key):
            print(f"{key}: {a.get(key)!r} -> {b.get(key)!r}")


@samples_app.command("fetch")
def samples_fetch(directory: Path) -> None:
    """Put the sample clip, portraits and speech into DIRECTORY."""
    from nfs.samples import fetch_samples

    fetch_samples(directory, progress=print)


@artifact_app.command("inspect")
def artifact_inspect(path: str) -> None:
    """Print what the artifact at PATH is and holds."""
    from nfs.artifacts import read_manifest

    manifest = read_manifest(path)
    summary = manifest.model_dump(exclude={"files", "config"})
    summary["num_files"] = len(manifest.files)
    summary["bytes"] = sum(f.bytes for f in manifest.files)
    print(json.dumps(summary, indent=1))


@artifact_app.command("verify")
def artifact_verify(path: str) -> None:
    """Compare every file of the artifact at PATH with its checksum."""
    from nfs.artifacts import verify

    problems = verify(path)
    for problem in problems:
        print(problem)
    if problems:
        raise typer.Exit(1)
    print("intact")


@artifact_app.command("compact")
def artifact_compact(
    path: str,
    shard_mb: Annotated[float, typer.Option(help="Size of a shard in 10^6 bytes.", min=1)] = 128,
) -> None:
    """Merge the unit files of PATH (clips, fits) into shards; killed, the same command goes on."""
    from nfs.artifacts.compaction import compact

    done = compact(path, shard_mb=shard_mb)
    print(
        f"{done.files_before} table files are {done.files_after} now, "
        f"{done.bytes_written / 1e6:.1f} MB written"
    )


@artifact_app.command("export-zip")
def artifact_export_zip(
    clips: str,
    target: Path,
    resolution: Annotated[int, typer.Option(help="Pixels per side, a power of two.")] = 256,
    fits: Annotated[str | None, typer.Option(help="Fits of CLIPS: camera labels.")] = None,
    identities: Annotated[bool, typer.Option(help="Not the photos' own label vectors.")] = False,
    split: str | None = None,
    max_frames_per_clip: int | None = None,
) -> None:
    """Write the frames of CLIPS as TARGET (.zip) with dataset.json, as StyleGAN programs read."""
    from nfs.artifacts.export_photos import export_zip
    from nfs.stylenerf.camera_labels import camera_labels

    done = export_zip(
        clips,
        target,
        resolution=resolution,
        labels=None if fits is None else camera_labels(fits),
        identities=identities,
        split=split,
        max_frames_per_clip=max_frames_per_clip,
    )
    kind = "cameras" if done.labels == "given" else done.labels
    print(f"{done.num_photos} photos of {done.num_identities} identities, labels: {kind}")
    if done.num_without_label:
        print(f"{done.num_without_label} frames without a good fit left out")


@artifact_app.command("export-keypoints")
def artifact_export_keypoints(
    clips: str,
    directory: Path,
    kind: Annotated[str, typer.Option("--format", help="txt (T*68*2 numbers) or npz.")] = "txt",
    space: Annotated[str, typer.Option(help="Pixels of the source or of the crop.")] = "source",
) -> None:
    """Write the 68 points of every frame of CLIPS, one file per clip, into DIRECTORY."""
    from nfs.errors import InputError
    from nfs.face.extractor import export_keypoints

    if kind not in ("txt", "npz") or space not in ("source", "crop"):
        raise InputError("--format is txt or npz, --space is source or crop")
    count = export_keypoints(clips, directory, kind=kind, space=space)  # type: ignore[arg-type]
    print(f"{count} clips")


@artifact_app.command("export-fits")
def artifact_export_fits(
    fits: str,
    directory: Path,
    format_: Annotated[str, typer.Option("--format", help="mat, npz, obj or arkit.")],
    clip: Annotated[list[str] | None, typer.Option(help="Clip id; all by default.")] = None,
    model: Annotated[str, typer.Option(help="Model of the fits, for obj and arkit.")] = "open_head",
    fps: Annotated[float, typer.Option(help="Frames per second, for arkit.")] = 25.0,
    frame: Annotated[list[int] | None, typer.Option(help="Frames as meshes, for obj.")] = None,
) -> None:
    """Write the coefficients of FITS for other programs, a file per clip, into DIRECTORY."""
    from nfs.morphable.export import FORMATS, export_fits

    if format_ not in FORMATS:
        raise typer.BadParameter(f"--format {format_}: choose one of {', '.join(FORMATS)}")
    written, remarks = export_fits(
        fits, directory, format_, clip_ids=clip, model_spec=model, fps=fps, frames=frame or ()
    )
    print(f"{len(written)} files in {directory}")
    for remark in remarks:
        print(remark)


@artifact_app.command("import-fits")
def artifact_import_fits(output: str, files: list[Path], model: str = "open_head") -> None:
    """Make the fits artifact OUTPUT of coefficient FILES (.npz, .mat, .npy, .pt)."""
    from nfs.morphable.exchange import import_fits
    from nfs.morphable.loading import load_model

    print(f"{import_fits(files, output, load_model(model))} clips in {output}")


@artifact_app.command("check-images")
def artifact_check_images(path: str, center_crop: bool = False) -> None:
    """Decode every image of PATH (folder, zip, parquet, clips); print the bad ones, exit 1."""
    from nfs.stylenerf.dataset import bad_images
    from nfs.stylenerf.image_builders import guess_source

    failed = False
    for name, problem in bad_images(guess_source(path), center_crop=center_crop):
        print(f"{name}\t{problem}")
        failed = True
    if failed:
        raise typer.Exit(1)


@checkpoint_app.command("inspect")
def checkpoint_inspect(path: Path) -> None:
    """Print what the checkpoint directory or the original's file PATH holds."""
    from nfs.checkpoints import describe

    print(json.dumps(describe(path), indent=1))


@checkpoint_app.command("import")
def checkpoint_import(
    family: str, path: Path, directory: Path, config: Annotated[Path | None, typer.Option()] = None
) -> None:
    """Write an original file PATH of FAMILY (`stylenerf`, `arcface/r50`, ...) as DIRECTORY."""
    from nfs.checkpoints import import_checkpoint

    import_checkpoint(family, path, directory, config=config)
    print(directory)


@checkpoint_app.command("export")
def checkpoint_export(
    directory: Path, path: Path, network: Annotated[str | None, typer.Option()] = None
) -> None:
    """Write NETWORK (ema, weights, discriminator) under the original's names to PATH."""
    from nfs.checkpoints import export_checkpoint

    print(f"{path}: {export_checkpoint(directory, path, network=network)}")


@checkpoint_app.command("onnx")
def checkpoint_onnx(path: Path, target: Path) -> None:
    """Write an ArcFace checkpoint directory as ONNX (any batch size), checked in onnxruntime."""
    from nfs.arcface.export import checkpoint_to_onnx

    print(f"{target}: differs from torch by {checkpoint_to_onnx(path, target):.1e}")


@records_app.command("check")
def records_check(path: str, classes: Annotated[int | None, typer.Option()] = None) -> None:
    """Read every image of PATH (.rec, clips artifact, folder of identities); exit 1 on problems."""
    from nfs.arcface.conversion import check_source

    report = check_source(path, classes)
    print(json.dumps(report, indent=1))
    if report["problems"]:
        raise typer.Exit(1)


@records_app.command("convert")
def records_convert(path: str, stem: Path, skip_bad: bool = False) -> None:
    """Write PATH as STEM.rec and STEM.idx."""
    from nfs.arcface.conversion import convert_to_records

    count, skipped = convert_to_records(path, stem, skip_bad=skip_bad)
    print(f"{count} images, {skipped} left out")


@records_app.command("pairs")
def records_pairs(path: str, target: Path, pairs: int = 6000, seed: int = 0) -> None:
    """Write a verification set TARGET (.bin) of random pairs of PATH."""
    from nfs.arcface.conversion import make_pairs

    print(f"{make_pairs(path, target, num_pairs=pairs, seed=seed)} pairs")


@records_app.command("index")
def records_index(path: str) -> None:
    """Write the index of a .rec file anew by scanning it."""
    from nfs.arcface.records import repair_index

    print(f"{repair_index(path)} records")


@app.command()
def doctor() -> None:
    """Check versions, GPU, storage, tracking and Ray authentication; exit 1 if something fails."""
    from nfs.doctor import checkup

    failed = False
    for check in checkup():
        print(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}")
        failed |= not check.ok
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
