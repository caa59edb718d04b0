"""Text to calibrate and validate on: files, the bundled text, token windows."""
