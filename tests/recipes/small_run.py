"""A recipe cut down until it takes a second, for tests that train in processes of their own."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deeplab_recipes import config
from deeplab_recipes.training import Run

SMALL = [
    "+recipe=ade20k_composer", "model=deeplabv3plus_mobilenet_v2", "model.width_multiplier=0.35",
    "model.aspp_channels=16", "model.output_stride=32", "model.backbone_weights=none",
    "data.crop_size=[33,33]", "data.base_size=[40,40]", "data.evaluate_sizes={square:[33,33],keep_ratio:[40,40]}",
    "data.workers=0", "batch_size=4", "pictures=0", "trainer.precision=32-true", "trainer.progress=false",
    "trainer.accelerator=cpu", "~logger",
]  # fmt: skip


def built(root: str | Path, run_dir: str | Path, *overrides: str) -> Run:
    """Compose it as the command line does, and build it."""
    words = [*SMALL, f"data.root={root}", f"run_dir={run_dir}", *overrides]
    with initialize_config_dir(str(config.yamls_folder()), version_base="1.3"):
        settings = OmegaConf.to_container(compose("train", words), resolve=True)
    return config.assemble(settings, {})
