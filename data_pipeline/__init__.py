"""Everything about data, offline and online: records, shards, video files, synthetic worlds, the training stream.

Nothing here imports `jax` or `sora_jax`: a loader or curation machine needs no accelerator stack.
"""
