"""The fixed patch set a run is judged on: `patches.parquet` in its folder.

ODCorr compares embeddings of randomly selected patches over the course of training (paper, figure
4), so a run draws its set once and keeps it.
"""
