"""Runs over data sets: many images, models, methods and metrics, written so that nothing is lost or done twice.

Data flow: `Spec` -> images sampled and fingerprinted -> plan of shards, each named by everything its numbers depend
on -> missing shards measured, group of images after group -> one Parquet file a shard, there whole or not at all ->
tables queried over the files.
"""

from salviz.runs.spec import Spec

__all__ = ["Spec"]
