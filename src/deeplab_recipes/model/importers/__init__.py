"""Weights of other DeepLab programs: each module reads one program's files, see `base.Imported`."""
