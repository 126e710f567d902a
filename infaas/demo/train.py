"""Train the demo's digits family, export it and say what each model costs and how often it is right.

Run as `python -m infaas.demo.train [--out DIR]` with the extra `demo-training` installed. Everything is seeded: the
same packages on the same kind of machine give the same files. No model is ever fitted to the held-out third.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from infaas.demo.family import EVAL_FILE, FAMILY, MODELS, SIMPLE_EVAL_FILE, SIMPLE_FILE, FamilyModel
from infaas.demo.graphs import (
    PIXEL_MAX,
    SIDE,
    Array,
    Views,
    centroid_graph,
    network_graph,
    resampling,
    simple_graph,
    views,
)

Labels = npt.NDArray[np.int64]

SEED = 20
# Fixed, because the order of a parallel sum is part of the result.
TORCH_THREADS = 2
WARMUP_RUNS = 5
TIMED_SECONDS = 1.5


@dataclass(frozen=True, slots=True)
class Split:
    """The scans: two thirds to learn from and a third, never trained on, to score with."""

    train_images: Array
    train_labels: Labels
    eval_images: Array
    eval_labels: Labels


def load_split() -> Split:
    """Scikit-learn's 1797 scans of 8x8 pixels, split the same way every time and with every digit in proportion."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.astype(np.float32), labels.astype(np.int64), test_size=1 / 3, random_state=SEED, stratify=labels
    )
    return Split(train_images=parts[0], eval_images=parts[1], train_labels=parts[2], eval_labels=parts[3])


def build_centroid(split: Split, model: FamilyModel) -> onnx.ModelProto:
    """Ten mean images; the spread of the scans around them sets how sure the softmax is."""
    centroids = np.stack([split.train_images[split.train_labels == digit].mean(axis=0) for digit in range(10)])
    variance = float(((split.train_images - centroids[split.train_labels]) ** 2).mean())
    return centroid_graph(model.name, model.description, centroids, variance)


def build_sklearn(classifier: Any, input_name: str) -> Callable[[Split, FamilyModel], onnx.ModelProto]:
    """Fit a scikit-learn classifier and export it as its users would: their names, no ZipMap."""

    def build(split: Split, model: FamilyModel) -> onnx.ModelProto:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        classifier.fit(split.train_images, split.train_labels)
        exported: onnx.ModelProto = convert_sklearn(
            classifier,
            name=model.name,
            initial_types=[(input_name, FloatTensorType([None, split.train_images.shape[1]]))],
            options={"zipmap": False},
            target_opset={"": 17, "ai.onnx.ml": 3},
        )
        return exported

    return build


def layers_mlp() -> list[Any]:
    """One hidden layer."""
    from torch import nn

    return [nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)]


def layers_cnn(widths: list[int], pool_after: set[int], dropout: float) -> list[Any]:
    """3x3 convolutions of the given widths, halving the image after the numbered ones, and one dense layer."""
    from torch import nn

    layers: list[Any] = [nn.Unflatten(1, (1, SIDE, SIDE))]
    channels, side = 1, SIDE
    for index, width in enumerate(widths, start=1):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
        if index in pool_after:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return [*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels * side * side, 10)]


def distortions(generator: np.random.Generator, count: int) -> Array:
    """A pool of random small turns and shifts, [count, 64, 64]; the first leaves the image as it is."""
    drawn = generator.uniform((-12, -1, -1), (12, 1, 1), size=(count, 3))
    drawn[0] = 0
    return np.stack([resampling(angle, right, down) for angle, right, down in drawn])


def fit_network(layers: list[Any], split: Split, epochs: int, rate: float, distort: bool) -> Any:
    """Train on the train split: AdamW, a one-cycle learning rate, labels softened a little; distorted if asked."""
    import torch
    from torch import nn

    network = nn.Sequential(*layers)
    images = torch.from_numpy(split.train_images / np.float32(PIXEL_MAX))
    labels = torch.from_numpy(split.train_labels)
    pool = torch.from_numpy(distortions(np.random.default_rng(SEED), 512))
    batch = 64
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    steps = (len(images) + batch - 1) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            rows = images[chosen]
            if distort:
                rows = torch.bmm(rows.unsqueeze(1), pool[torch.randint(len(pool), (len(chosen),))]).squeeze(1)
            optimizer.zero_grad()
            loss(network(rows), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def build_network(
    make_layers: Callable[[], list[Any]], epochs: int, rate: float, distort: bool = False, averaged: Views | None = None
) -> Callable[[Split, FamilyModel], onnx.ModelProto]:
    """Train a torch network from a fixed seed and write its graph."""

    def build(split: Split, model: FamilyModel) -> onnx.ModelProto:
        import torch

        torch.manual_seed(SEED)
        torch.set_num_threads(TORCH_THREADS)
        torch.use_deterministic_algorithms(True)
        network = fit_network(make_layers(), split, epochs, rate, distort)
        return network_graph(model.name, model.description, network, averaged)

    return build


def builders() -> dict[str, Callable[[Split, FamilyModel], onnx.ModelProto]]:
    """How each model of the family is made, by name."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    return {
        "digits-centroid": build_centroid,
        "digits-logistic": build_sklearn(LogisticRegression(C=0.01, max_iter=2000), "float_input"),
        "digits-forest": build_sklearn(RandomForestClassifier(25, random_state=SEED), "X"),
        "digits-mlp": build_network(layers_mlp, epochs=60, rate=0.01),
        "digits-cnn-small": build_network(lambda: layers_cnn([8, 16], {1, 2}, 0.0), epochs=40, rate=0.01),
        "digits-svm": build_sklearn(SVC(C=10), "float_input"),
        "digits-cnn-medium": build_network(
            lambda: layers_cnn([12, 24, 24], {2, 3}, 0.1),
            epochs=40,
            rate=0.01,
            distort=True,
            averaged=views(degrees=(-8, -4, 0, 4, 8), pixels=(-0.5, 0, 0.5), reach=0.9),
        ),
        "digits-cnn-large": build_network(
            lambda: layers_cnn([32, 64, 64, 64, 64, 64, 96], {6, 7}, 0.3),
            epochs=60,
            rate=0.004,
            distort=True,
            averaged=views(degrees=(-9, -6, -3, 0, 3, 6, 9), pixels=(-0.8, -0.4, 0, 0.4, 0.8), reach=0.9),
        ),
    }


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one exported file weighs, costs and gets right."""

    model: FamilyModel
    kilobytes: float
    accuracy: float
    p50_ms_batch_1: float
    p50_ms_batch_16: float


def measure(model: FamilyModel, file: Path, images: Array, labels: Labels) -> Measurement:
    """Score and time a file as it will be served: in ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output = next(out.name for out in session.get_outputs() if out.type == "tensor(float)")
    answers = [session.run([output], {name: images[at : at + 16]})[0] for at in range(0, len(images), 16)]
    scores = np.concatenate(answers)
    if not np.isfinite(scores).all():
        raise ValueError(f"{model.name} answers with numbers that are not finite")
    alone = np.concatenate([session.run([output], {name: images[at : at + 1]})[0] for at in range(16)])
    if np.abs(alone - scores[:16]).max() > 1e-4:
        raise ValueError(f"{model.name} answers differently in a batch")

    def p50_ms(batch: int) -> float:
        feed = {name: images[:batch]}
        for _ in range(WARMUP_RUNS):
            session.run([output], feed)
        times: list[float] = []
        end = time.perf_counter() + TIMED_SECONDS
        while (start := time.perf_counter()) < end:
            session.run([output], feed)
            times.append(time.perf_counter() - start)
        return float(np.median(times)) * 1e3

    accuracy = float((scores.argmax(axis=1) == labels).mean())
    return Measurement(model, file.stat().st_size / 1000, accuracy, p50_ms(1), p50_ms(16))


def save_simple(out: Path) -> None:
    """The arithmetic model and rows with their exact answers."""
    onnx.save(simple_graph(), str(out / SIMPLE_FILE))
    generator = np.random.default_rng(SEED)
    first, second = generator.integers(-1000, 1000, size=(2, 64, 16), dtype=np.int32)
    np.savez_compressed(
        out / SIMPLE_EVAL_FILE, INPUT0=first, INPUT1=second, OUTPUT0=first + second, OUTPUT1=first - second
    )


def main() -> None:
    """Train, export, check and report as a table."""
    parser = argparse.ArgumentParser(prog="python -m infaas.demo.train", description="Train the demo's digits family.")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the files go (default: beside this file)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    split = load_split()
    np.savez_compressed(out / EVAL_FILE, image=split.eval_images, label=split.eval_labels)
    save_simple(out)
    build = builders()
    print("| model | file, kB | accuracy | p50 at batch 1, ms | p50 at batch 16, ms |")
    print("|---|---:|---:|---:|---:|")
    for model in FAMILY:
        exported = build[model.name](split, model)
        onnx.checker.check_model(exported, full_check=True)
        onnx.save(exported, str(out / model.file))
        row = measure(model, out / model.file, split.eval_images, split.eval_labels)
        print(
            f"| `{model.name}` | {row.kilobytes:.0f} | {row.accuracy:.2%} "
            f"| {row.p50_ms_batch_1:.3f} | {row.p50_ms_batch_16:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
