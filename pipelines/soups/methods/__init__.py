"""Merge methods: pure functions of tensors, one file each; `pipelines.soups.METHODS` names them."""
