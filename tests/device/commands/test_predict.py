# SPDX-License-Identifier: Apache-2.0
"""`splitee predict` in real processes, one by exec to see that it never imports torch; many image formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import warm
from commands import call
from PIL import Image
from trained import NETWORK, Trained

from splitee.cli.main import main
from splitee.errors import ExitCode
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import CLIENT, MANIFEST, ClientManifest, read_manifest, write_manifest
from splitee.inference.uncertainty import normalized_entropy, softmax, uncertainty
from splitee.samples.fitting import Region
from splitee.samples.storage import REGION, save_region
from splitee_device.data.batches import batch
from splitee_export.graphs import ClientGraph, run_torch
from splitee_export.states import DeviceState, read_state

pytestmark = pytest.mark.slow

# Runs the command, then prints the modules that it has loaded.
TELL_MODULES = """
import sys
from splitee.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print("modules:", *sys.modules, file=sys.stderr)
"""
LONG = 60.0  # seconds


@pytest.fixture
def model(trained: Trained, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(trained.model("pi-2"), tmp_path / "model"))


def _state(trained: Trained) -> DeviceState:
    state = read_state(trained.path / "pi-2", NETWORK)
    assert isinstance(state, DeviceState)
    return state


def predict(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run("predict", *arguments, environment={**os.environ, **environment}, timeout=LONG)


def predictions(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def save(image: np.ndarray, path: Path) -> Path:
    Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return path


def test_predict_does_not_import_torch(trained: Trained, tmp_path: Path) -> None:
    image = save(trained.data.held_out.images[0], tmp_path / "one.png")
    command = ("predict", "--model", trained.model("pi-2"), image)
    broker = ("--broker", "mqtt://127.0.0.1:9", "--timeout", "0.2")
    done = subprocess.run(
        [sys.executable, "-c", TELL_MODULES, *command, *broker],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.partition("modules: ")[2].split())
    assert {"onnxruntime", "numpy", "paho.mqtt.client"} <= loaded
    foreign = {"torch", "torchvision", "onnx", "onnxscript", "sympy", "matplotlib", "pyarrow", "rich"}
    assert not foreign & loaded


def test_predictions_equal_those_of_the_training_network(trained: Trained, tmp_path: Path) -> None:
    state, held_out = _state(trained), trained.data.held_out
    for index in range(8):
        save(held_out.images[index], tmp_path / f"{index}.png")
    found = predictions(predict("--model", trained.model("pi-2"), tmp_path, "--json", "--threshold", 1))
    inputs, _ = batch(held_out, np.arange(8), state.spec.mean, state.spec.std)
    logits = run_torch(ClientGraph(state.client, state.exit), inputs.numpy())[1]
    probabilities = softmax(logits)
    entropy = normalized_entropy(logits)
    assert [Path(str(prediction["image"])).stem for prediction in found] == list("01234567")
    for index, prediction in enumerate(found):
        assert prediction["label"] == trained.data.class_names[probabilities[index].argmax()]
        assert prediction["probability"] == pytest.approx(probabilities[index].max(), abs=1e-5)
        assert prediction["entropy"] == pytest.approx(entropy[index], abs=1e-5)
        assert prediction["source"] == "exit"
        assert 0 < float(str(prediction["milliseconds"])) < 10_000


def test_images_of_other_sizes_and_formats_get_the_same_label(trained: Trained, tmp_path: Path) -> None:
    grey = Image.fromarray(trained.data.held_out.images[0][0])
    grey.save(tmp_path / "a-grey.png")
    grey.convert("RGBA").save(tmp_path / "b-alpha.png")
    grey.convert("P").save(tmp_path / "c-palette.gif")
    grey.resize((320, 320), Image.Resampling.NEAREST).save(tmp_path / "d-large.bmp")
    found = predictions(predict("--model", trained.model("pi-2"), tmp_path, "--json"))
    assert len(found) == 4
    assert len({prediction["label"] for prediction in found}) == 1
    assert [prediction["entropy"] for prediction in found[1:3]] == pytest.approx(
        [found[0]["entropy"]] * 2, abs=1e-4
    )


def test_unreadable_image_is_skipped_in_a_folder_and_refused_alone(trained: Trained, tmp_path: Path) -> None:
    save(trained.data.held_out.images[0], tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    done = predict("--model", trained.model("pi-2"), tmp_path, "--json")
    assert len(predictions(done)) == 1 and "skipped" in done.stderr and "bad.png" in done.stderr
    alone = predict("--model", trained.model("pi-2"), bad)
    assert alone.returncode == ExitCode.DATA and "expected an image" in alone.stderr


def test_class_folders_are_summarised_and_the_current_model_is_found(
    trained: Trained, tmp_path: Path
) -> None:
    state, held_out, names = tmp_path / "state", trained.data.held_out, trained.data.class_names
    (state / "models").mkdir(parents=True)
    (state / "models" / "current").symlink_to(trained.model("pi-2"))
    plain = [index for index, label in enumerate(held_out.labels) if "/" not in names[label]]
    for index in plain[:6]:
        folder = tmp_path / "images" / names[held_out.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        save(held_out.images[index], folder / f"{index}.png")
    done = predict("--model", state, tmp_path / "images")
    assert done.returncode == 0, done.stderr
    labels = {
        line.partition(": ")[0]: line.partition(": ")[2].split(" ")[0] for line in done.stdout.splitlines()
    }
    assert len(labels) == 6
    right = sum(Path(name).parent.name.startswith(label) for name, label in labels.items())
    assert "6 images: " in done.stderr
    assert f"right, where the folder is a class: {right} of 6" in done.stderr
    quiet = predict("--model", state / "models", tmp_path / "images", "--json")
    assert len(predictions(quiet)) == 6 and "6 images" not in quiet.stderr


def test_missing_images_and_invalid_threshold_are_reported(trained: Trained, tmp_path: Path) -> None:
    model = ("--model", trained.model("pi-2"))
    for arguments, code, words in (
        (model, ExitCode.CONFIG, "nothing to classify"),
        ((*model, tmp_path), ExitCode.DATA, "holds no images"),
        ((*model, tmp_path / "missing.png"), ExitCode.DATA, "missing.png"),
        ((*model, "--threshold", 1.5, tmp_path), ExitCode.CONFIG, "--threshold"),
    ):
        done = predict(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
        assert words in done.stderr


def _truncate(model: Path) -> None:
    graph = (model / CLIENT).read_bytes()
    (model / CLIENT).write_bytes(graph[: len(graph) // 2])


def _flip_a_bit(model: Path) -> None:
    graph = bytearray((model / CLIENT).read_bytes())
    graph[len(graph) // 2] ^= 1
    (model / CLIENT).write_bytes(graph)


def _change(model: Path, **fields: object) -> None:
    manifest = read_manifest(model, ClientManifest)
    write_manifest(model, msgspec.structs.replace(manifest, **fields))


def _no_onnx(model: Path) -> None:
    import hashlib

    (model / CLIENT).write_bytes(b"not a graph")
    _change(model, sha256={CLIENT: hashlib.sha256(b"not a graph").hexdigest()})


DAMAGES = {
    "truncated": (_truncate, "is damaged"),
    "a flipped bit": (_flip_a_bit, "is damaged"),
    "no graph": (lambda model: (model / CLIENT).unlink(), "No such file"),
    "no manifest": (lambda model: (model / MANIFEST).unlink(), "no model at"),
    "torn manifest": (lambda model: (model / MANIFEST).write_text('{"kind": "cli'), "expected the manifest"),
    "of a server": (
        lambda model: (model / MANIFEST).write_text('{"kind": "trunk"}'),
        "expected the manifest",
    ),
    "another network": (lambda model: _change(model, feature_shape=(9, 9, 9)), "its manifest needs"),
    "other classes": (lambda model: _change(model, class_names=("a", "b")), "its manifest needs"),
    "no ONNX": (_no_onnx, "ONNX Runtime does not load it"),
    "outside": (
        lambda model: (model / MANIFEST).write_text(
            (model / MANIFEST).read_text().replace('"file": "client.onnx"', '"file": "../../x.onnx"')
        ),
        "expected the manifest",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_mismatched_model_is_refused(model: Path, damage: str) -> None:
    work, words = DAMAGES[damage]
    work(model)
    done = predict("--model", model, model)
    assert done.returncode == ExitCode.DATA  # the folder holds no images, so no model was loaded
    save(np.zeros((3, 8, 8), np.uint8), model / "picture.png")
    done = predict("--model", model, model)
    assert done.returncode == ExitCode.MODEL, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr


def test_camera_flag_captures_an_image_with_the_system_program(trained: Trained, tmp_path: Path) -> None:
    image = save(trained.data.held_out.images[3], tmp_path / "picture.jpg")
    programs = tmp_path / "bin"
    programs.mkdir()
    camera = programs / "rpicam-vid"
    camera.write_text(f"#!/bin/sh\nwhile /bin/cat {image}; do /bin/sleep 0.05; done\n")
    camera.chmod(0o755)
    model = ("--model", trained.model("pi-2"), "--json")
    (found,) = predictions(predict(*model, "--camera", PATH=str(programs)))
    (same,) = predictions(predict(*model, image))
    assert (found["image"], found["picture"], found["label"]) == ("camera", "camera", same["label"])
    assert found["entropy"] == pytest.approx(same["entropy"])
    camera.write_text("#!/bin/sh\necho 'no cameras available' >&2\nexit 255\n")
    done = predict(*model, "--camera", PATH=str(programs))
    assert done.returncode == ExitCode.DATA and "no cameras available" in done.stderr
    camera.unlink()
    done = predict(*model, "--camera", PATH=str(programs))
    assert done.returncode == ExitCode.DATA and "no program for the camera" in done.stderr


def test_early_exit_predicts_if_the_broker_is_unreachable(trained: Trained, tmp_path: Path) -> None:
    image = save(trained.data.held_out.images[0], tmp_path / "one.png")
    broker = ("--broker", "mqtt://127.0.0.1:9", "--timeout", 0.3)
    done = predict("--model", trained.model("pi-2"), image, "--json", "--threshold", 0, *broker)
    (found,) = predictions(done)
    assert found["source"] == "local-fallback"
    assert "no broker at" in done.stderr and "Traceback" not in done.stderr


def test_normalised_entropy_is_that_of_softmax_and_uncertainty_is_bounded() -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((100, 10)).astype("f4") * 20
    softmaxs = torch.distributions.Categorical(logits=torch.from_numpy(logits)).entropy() / np.log(10)
    np.testing.assert_allclose(normalized_entropy(logits), softmaxs.numpy(), atol=1e-5)
    extremes = np.array([[0.0] * 10, [1e4] + [-1e4] * 9], dtype="f4")
    for measure, none in (("entropy", 1.0), ("confidence", 0.9)):
        np.testing.assert_allclose(uncertainty(extremes, measure), [none, 0.0], atol=1e-6)  # type: ignore[arg-type]


def test_model_predicts_the_same_one_by_one_as_in_a_batch(trained: Trained) -> None:
    model, images = ClientModel(trained.model("pi-2")), trained.data.held_out.images
    together, one = model(images[:20]), [model(images[i : i + 1]) for i in range(20)]
    for position in range(2):
        apart = np.concatenate([prediction[position] for prediction in one])
        np.testing.assert_allclose(together[position], apart, atol=1e-5)


def probabilities(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[float]:
    with pytest.raises(SystemExit) as leave:
        main(["predict", "--json", "--threads", "1", *map(str, arguments)])
    assert not leave.value.code
    return [json.loads(line)["probability"] for line in capsys.readouterr().out.splitlines()]


def test_training_region_is_cropped_unless_another_is_given(
    trained: Trained, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)
    whole, part, other = (tmp_path / f"{name}.png" for name in ("whole", "part", "other"))
    for path, kept in ((whole, pixels), (part, pixels[10:50, 30:70]), (other, pixels[:20, :20])):
        Image.fromarray(kept).save(path)
    expected = probabilities(capsys, "--model", model, part, other)
    older = json.loads((model / MANIFEST).read_bytes())
    assert older.pop("fit") == "crop"  # an older manifest lacks it
    (model / MANIFEST).write_text(json.dumps(older))
    (tmp_path / "store" / "releases").mkdir(parents=True)
    released = Path(shutil.copytree(model, tmp_path / "store" / "releases" / "one"))
    (tmp_path / "store" / "current").symlink_to(Path("releases") / "one")
    save_region(tmp_path / "store", Region(30, 10, 40, 40))
    save_region(model, Region(30, 10, 40, 40))
    for of_region in (model, released, tmp_path / "store" / "current"):
        assert probabilities(capsys, "--model", of_region, whole) == expected[:1]
    assert probabilities(capsys, "--model", model, whole, "--region", "0,0,20,20") == expected[1:]


def test_damaged_malformed_or_oversized_region_is_refused_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    predicts = ("predict", "--model", str(model), str(tmp_path / "small.png"))
    code, line = call(capsys, *predicts, "--region", "0,0,30,30")
    assert (code, "20 x 20 pixels: too few for the region 0,0,30,30" in line) == (ExitCode.DATA, True)
    code, line = call(capsys, *predicts, "--region", "0,0,30")
    assert (code, "--region 0,0,30: expected a region as X,Y,W,H" in line) == (ExitCode.CONFIG, True)
    (model / REGION).write_text('{"region": [1, 2]}')
    code, line = call(capsys, *predicts)
    assert (code, f"{model / REGION} is damaged" in line) == (ExitCode.MODEL, True)
