"""Everything that touches a disk: checkpoints and their snapshots, manifests, files of arrays, atomic writing."""
