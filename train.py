"""python train.py +recipe=ade20k_composer data.root=DIR: the same as `deeplab train ...`."""

from deeplab_recipes.cli import main

if __name__ == "__main__":
    main("train")
