"""Functions on arrays: attention, masks, ragged products, sampling."""
