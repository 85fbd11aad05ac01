from pagedattn_lab.kv_cache_groups import KVCacheGroup
def padding_lines(groups):
    """x"""
    buckets = {}
    for group in groups:
        layers, padding = buckets.get(group.bucket, (0, 0))
        buckets[group.bucket] = layers + len(group.layers), padding + group.padding_layers
    return [
        f"Add {padding} padding layers, may waste at most {padding / layers * 100:.2f}% KV cache memory"
        for layers, padding in buckets.values()
        if padding
    ]
