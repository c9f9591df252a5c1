"""TensorFlow's own DeepLab (tensorflow/models, research/deeplab) under TensorFlow 2, for parity_tensorflow.py.

The original is a program for TensorFlow 1 with `tensorflow.contrib`. It runs unchanged from a checkout that the user
names: while it is imported, the name ``tensorflow`` stands for TensorFlow's version-1 interface, and
``tensorflow.contrib`` for tf_slim, which contrib's slim became.
"""

import importlib
import os
import sys
import types
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the original has a layer made of tf.layers, which Keras 3 left out

import numpy as np

# isort: off
import torchvision  # noqa: F401  brings triton, whose LLVM must be loaded before TensorFlow's: else the process aborts
import tensorflow.compat.v1 as tf
import tf_slim
# isort: on

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_control_flow_v2()  # conditions as TensorFlow 1 writes them into graphs
SIZE = 257  # of the photographs on which the statistics of random networks are taken
# What a residual branch adds is a small part of what it adds to, as in a trained network: the factors of its last batch
# norm are drawn this much smaller. At equal parts each of dozens of units enlarges the rounding of those before it.
BRANCH_END = ("/separable_conv3_pointwise/BatchNorm/gamma", "/project/BatchNorm/gamma")
BRANCH_SCALE = 0.25


def _find_legacy_layers():
    """TensorFlow looks for the layers that tf_slim is made of where an older tf_keras had them."""
    names = ("", ".base", ".convolutional", ".core", ".normalization", ".pooling")
    for name in names:
        module = importlib.import_module(f"tf_keras.src.legacy_tf_layers{name}")
        sys.modules.setdefault(f"tf_keras.legacy_tf_layers{name}", module)


class _Contrib(types.ModuleType):
    """A module of contrib: of what it had, tf_slim's layers are there; the rest is imported but never called here."""

    def __getattr__(self, name):
        owner = next((owner for owner in (tf_slim, tf_slim.layers) if hasattr(owner, name)), None)
        if owner is None:
            raise AttributeError(name)
        return getattr(owner, name)


def _contrib():
    names = ("", ".framework", ".layers", ".layers.python", ".quantize", ".training")
    modules = {f"tensorflow.contrib{name}": _Contrib(f"tensorflow.contrib{name}") for name in names}
    nets = importlib.import_module("tf_slim.nets")
    modules |= {"tensorflow.contrib.slim": tf_slim, "tensorflow.contrib.slim.nets": nets}
    modules["tensorflow.contrib.layers.python.layers"] = importlib.import_module("tf_slim.layers")
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in modules and parent != "tensorflow.contrib.slim":
            setattr(modules[parent], child, module)
    return modules


@contextmanager
def _version_one(models):
    modern, path = sys.modules["tensorflow"], list(sys.path)
    contrib = _contrib()
    tf.contrib = contrib["tensorflow.contrib"]
    sys.modules.update({"tensorflow": tf, **contrib})
    np.int = int  # an alias that NumPy dropped
    sys.path[:0] = [str(models / "research"), str(models / "research" / "slim")]
    try:
        yield
    finally:
        sys.modules["tensorflow"], sys.path[:] = modern, path
        del np.int


class Original:
    """The original's modules, from a checkout of tensorflow/models."""

    def __init__(self, models):
        models = Path(models).resolve()
        _find_legacy_layers()
        if not (models / "research" / "deeplab" / "export_model.py").is_file():
            raise SystemExit(
                f"{models} is no checkout of tensorflow/models: it has no research/deeplab/export_model.py"
            )
        with _version_one(models):
            names = ("common", "model", "export_model")
            self.common, self.model, self.export = (importlib.import_module(f"deeplab.{name}") for name in names)
        self.flags = self.export.FLAGS
        self.flags(["export", "--checkpoint_path=", "--export_path="])
        self.defaults = {name: self.flags[name].value for name in self.flags}

    def set_flags(self, **flags):
        """Set flags as on export_model.py's command line; the others have their defaults."""
        for name, value in {**self.defaults, **flags}.items():
            self.flags[name].value = value

    def write(self, folder, photographs, seed, **flags):
        """Write a random network: a checkpoint of all its variables, and the frozen graph that export_model.py makes.

        Args:
            folder: where to.
            photographs: (B, SIZE, SIZE, 3) uint8, for batch norm's statistics.
            seed: of the weights.
            flags: as on the command line.

        Returns:
            The paths of the checkpoint (its prefix) and of the graph.
        """
        self.set_flags(**flags)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint, graph = str(folder / "model.ckpt"), str(folder / "frozen_inference_graph.pb")
        with tf.Graph().as_default(), tf.Session() as session:
            self._random_network(session, photographs, seed)
            tf.train.Saver(tf.global_variables()).save(session, checkpoint, write_meta_graph=False)
        self.set_flags(**flags, checkpoint_path=checkpoint, export_path=graph)
        with tf.Graph().as_default():
            self.export.main([])
        return checkpoint, Path(graph)

    def _random_network(self, session, photographs, seed):
        """Draw the weights, then every batch norm's statistics: those of the photographs, times random factors."""
        tf.set_random_seed(seed)
        options = self.common.ModelOptions(
            {self.common.OUTPUT_TYPE: self.flags.num_classes},
            crop_size=[SIZE, SIZE],
            atrous_rates=self.flags.atrous_rates,
            output_stride=self.flags.output_stride,
        )
        images = tf.constant(photographs, tf.float32)
        scales = self.model.multi_scale_logits(images, options, None, is_training=True, fine_tune_batch_norm=True)
        logits = scales[self.common.OUTPUT_TYPE][self.model.MERGED_LOGITS_SCOPE]
        tf.train.get_or_create_global_step()
        session.run(tf.global_variables_initializer())
        rng = np.random.default_rng(seed)
        variables = {variable.op.name: variable for variable in tf.global_variables()}
        for name, variable in variables.items():
            shape = variable.shape.as_list()
            if name.endswith("gamma"):
                scale = BRANCH_SCALE if name.endswith(BRANCH_END) else 1
                variable.load(scale * rng.uniform(0.7, 1.4, shape), session)
            elif name.endswith(("beta", "biases")):
                variable.load(rng.normal(0, 0.2, shape), session)
            elif name.startswith("logits/") and name.endswith("weights"):
                variable.load(rng.normal(0, 0.3, shape), session)  # drawn at 0.01, the logits would be nearly flat
        norms = [op for op in session.graph.get_operations() if op.type.startswith("FusedBatchNorm")]
        found, scores = session.run([[norm.outputs[1:3] for norm in norms], logits])
        for norm, (mean, variance) in zip(norms, found, strict=True):
            scope = norm.name.rsplit("/", 1)[0]
            deviation = np.sqrt(variance)
            variables[f"{scope}/moving_mean"].load(mean + 0.1 * deviation * rng.normal(size=mean.shape), session)
            variables[f"{scope}/moving_variance"].load(variance * rng.uniform(0.8, 1.2, variance.shape) + 1e-4, session)
        # Centred, so that each class is the best one somewhere.
        biases = variables[f"logits/{self.common.OUTPUT_TYPE}/biases"]
        biases.load(session.run(biases) - scores.mean((0, 1, 2)), session)


class Graph:
    """A frozen graph, running in TensorFlow."""

    def __init__(self, file):
        definition = tf.GraphDef()
        definition.ParseFromString(Path(file).read_bytes())
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")
        self.session = tf.Session(graph=graph)
        # The last of these is what the labels are the argmax of: logits at the size of the padded image.
        self.logits = graph.get_operation_by_name("ArgMax").inputs[0]

    def __call__(self, image):
        """Return labels (H, W), and logits (C, H', W') of the padded image, for an image (H, W, 3) uint8."""
        labels, logits = self.session.run(["SemanticPredictions:0", self.logits], {"ImageTensor:0": image[None]})
        return labels[0], logits[0].transpose(2, 0, 1)
