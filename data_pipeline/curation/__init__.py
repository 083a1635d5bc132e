"""From whatever people have to clips worth training on: `sora-jax data curate` (docs/curation.md)."""
