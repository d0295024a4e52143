"""All disk access: checkpoints and their snapshots, manifests, files of arrays, atomic writing."""
