"""Text to calibrate and validate on: files, the bundled text, token windows."""

from prosparse_export.text.files import Document, read_text, tokenize
from prosparse_export.text.windows import BUNDLED, Window, default_text, windows

__all__ = ["BUNDLED", "Document", "Window", "default_text", "read_text", "tokenize", "windows"]
