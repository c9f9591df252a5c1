"""python -m deeplab_recipes VERB ...: the same as `deeplab VERB ...`."""

from deeplab_recipes.cli import main

main()
