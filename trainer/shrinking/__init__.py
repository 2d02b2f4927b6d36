"""A smaller model made of a larger one's parts: whole layers, neurons of the feed-forward, groups of attention heads.

families ─ which models, and where their parts lie       rules ─ which layers stay
importance ─ what each part does on a sample of texts    cut ─ the kept parts as a model of their own
"""
