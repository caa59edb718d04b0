"""The ProSparse method: progressive L1 training and threshold calibration."""
