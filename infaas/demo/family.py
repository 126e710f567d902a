"""What the demo ships: every model of the digits family and the renames that bring it to the family's contract.

Only a description. It reads no file and imports only the standard library, so that a command can list the family
(or a test can walk it) without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INPUT = "image"
OUTPUT = "scores"
CLASSES = 10
PIXELS = 64
EVAL_FILE = "digits-eval.npz"
SIMPLE_FILE = "simple.onnx"
SIMPLE_EVAL_FILE = "simple-eval.npz"


@dataclass(frozen=True, slots=True)
class FamilyModel:
    """One trained model. `renames` are the `--map theirs=ours` arguments it needs; most need none."""

    name: str
    file: str
    description: str
    renames: tuple[str, ...] = ()


# From the plainest model to the most accurate one. No accuracy and no latency here: measuring them is the system's job.
FAMILY: tuple[FamilyModel, ...] = (
    FamilyModel(
        name="digits-centroid",
        file="digits-centroid.onnx",
        description="the nearest of ten mean images",
    ),
    FamilyModel(
        name="digits-logistic",
        file="digits-logistic.onnx",
        description="logistic regression, exported by skl2onnx under its own names",
        renames=("float_input=image", "probabilities=scores"),
    ),
    FamilyModel(
        name="digits-forest",
        file="digits-forest.onnx",
        description="a random forest of 25 trees, exported by skl2onnx under its own names",
        renames=("X=image", "probabilities=scores"),
    ),
    FamilyModel(
        name="digits-mlp",
        file="digits-mlp.onnx",
        description="one hidden layer of 16 units",
    ),
    FamilyModel(
        name="digits-cnn-small",
        file="digits-cnn-small.onnx",
        description="two narrow convolutions",
    ),
    FamilyModel(
        name="digits-svm",
        file="digits-svm.onnx",
        description="a support vector machine, exported by skl2onnx under its own names",
        renames=("float_input=image", "probabilities=scores"),
    ),
    FamilyModel(
        name="digits-cnn-medium",
        file="digits-cnn-medium.onnx",
        description="three convolutions, averaged over 45 turned and shifted views of the image",
    ),
    FamilyModel(
        name="digits-cnn-large",
        file="digits-cnn-large.onnx",
        description="seven convolutions, averaged over 147 turned and shifted views of the image",
    ),
)

MODELS = Path(__file__).resolve().parent / "models"


def path(file: str) -> Path:
    """Where a shipped file lies, whether the package runs from a checkout or from an installed wheel."""
    return MODELS / file
