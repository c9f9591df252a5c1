"""Weights of other DeepLab programs: a module for each program reads its files, see `base.Imported`."""

SOURCES = ("tensorflow", "keras", "composer", "mmsegmentation")
