"""Playing a trained world: in a page on 127.0.0.1, headless from a recording, and as an environment of Gymnasium."""
