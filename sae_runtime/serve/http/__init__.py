"""The plane over HTTP: Open Inference Protocol v2, the routes of OpenAI, metrics and a page."""
