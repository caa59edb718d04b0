"""An HTTP server with OpenAI's interface and continuous batching."""
